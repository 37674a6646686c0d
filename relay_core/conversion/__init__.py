"""Files of the published code and of torchvision, made into ours. `pickled` alone reads pickles, in a process of its own."""
