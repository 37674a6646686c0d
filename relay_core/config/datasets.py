"""Define the settings of the data sets that a run file may name."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from relay_core.config.base import Settings
from relay_core.config.explain import Source, explain
from relay_core.config.registry import Choice, Entry, Registry
from relay_core.config.solvers import Task
from relay_core.errors import RunFileError

Fit = Literal["stretch", "pad", "crop"]
"""How an image that is not square becomes one, see `imaging.fit`."""
Groups = tuple[tuple[int, ...], ...]
"""Groups of class ids, see `FolderKwargs.class_groups`."""
PLATFORMS = ("Windows", "Darwin", "Linux")


class CommonDatasetKwargs(Settings):
    """What every data set has."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    """What it has labels for."""

    task_id: int | None = Field(default=None, ge=1)
    """Number of the site in the run, from 1; the run file gives it."""
    task_name: str | None = None
    """Name of the site; the run file gives it."""
    img_folder: str | None = None
    """The site's folder, below `root_path` where it is relative."""
    root_path: str | dict[str, str] | None = None
    """Folder that holds the sites' folders: one path, or one for each platform (Windows, Darwin, Linux)."""
    task: Task = "segmentation"
    """What is learned: a class for every pixel, or one for the image."""
    img_size: int | None = Field(default=None, ge=4)
    """Side that images and masks are resized to, in pixels; none: the model's resolution."""
    fit: Fit = "stretch"
    """What happens to an image that is not square: `stretch` gives up its aspect ratio, `pad` adds black (background),
    `crop` leaves out what is beyond the square in the middle. Predictions are brought back to the image's own pixels."""
    img_channels: Literal[1, 3] = 3
    """1: grey (colour images are turned to luma), 3: colour (grey images are repeated)."""
    num_classes: int = Field(default=3, ge=2, le=256)
    """Number of classes, the background (class 0) included."""
    class_names: list[str] | None = None
    """What the classes are called, the background first; shown with predictions. None: the data set's own names."""
    out_range: tuple[float, float] = (-1.0, 1.0)
    """Values that black and white become."""
    num_replica: int = Field(default=1, ge=1)
    """How many times every training image is shown within an epoch."""

    @field_validator("task")
    @classmethod
    def _task_has_labels(cls, task: Task) -> Task:
        if task not in cls.tasks:
            raise ValueError(f"this data set is for {' and '.join(cls.tasks)}, not for {task}")
        return task

    @field_validator("root_path")
    @classmethod
    def _platforms_are_known(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        unknown = sorted(set(value) - set(PLATFORMS)) if isinstance(value, dict) else []
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a platform; use {', '.join(PLATFORMS)}")
        return value

    @model_validator(mode="after")
    def _every_class_has_a_name(self) -> Self:
        names = self.class_names
        if names is not None and (len(names) != self.num_classes or not all(name.strip() for name in names)):
            raise ValueError(f"class_names gives {len(names)} names, and there are {self.num_classes} classes")
        return self

    def names(self) -> list[str]:
        """Return the names of the classes, the background first."""
        return self.class_names or ["background", *(f"class {i}" for i in range(1, self.num_classes))]

    @property
    def value_window(self) -> tuple[float, float] | None:
        """Return the measured values, such as HU, that become black and white; None: the images hold shades only."""
        return None

    @property
    def groups(self) -> Groups:
        """Return groups of classes that some sites do not tell apart; label `num_classes + i` stands for group i."""
        return ()

    @property
    def merged(self) -> list[int]:
        """Return the numbers of the groups whose classes this site does not tell apart."""
        return []

    @property
    def served_otherwise(self) -> str | None:
        """Return why a served model would see other images than in training; None: it sees the same."""
        return None

    @field_validator("out_range")
    @classmethod
    def _range_rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError(f"the first value must be below the second, got {list(value)}")
        return value


class FundusKwargs(CommonDatasetKwargs):
    """Optic disc and cup in DoFE's layout: `{train,test}/ROIs/{image,mask}`; masks 255 background, 128 disc, 0 cup."""

    def names(self) -> list[str]:
        """Return background, disc and cup, unless the run file gives names or another number of classes."""
        has_default_classes = self.class_names is None and self.num_classes == 3
        return ["background", "optic disc", "optic cup"] if has_default_classes else super().names()


class FolderKwargs(CommonDatasetKwargs):
    """Any set: a folder of images, with a folder of masks of the same file stems or with a table of the images' classes."""

    tasks = ("segmentation", "classification")

    mask_values: dict[int, int] | None = None
    """Mask value -> class id. None: mask values are class ids already, 0 to num_classes - 1."""
    class_groups: list[list[int]] = Field(default_factory=list)
    """Partial labels: groups of classes that some sites do not tell apart, the same at all sites of a run. The first group
    is class `num_classes` in `mask_values`, the second `num_classes` + 1, and so on: such a pixel is of one of its classes.
    Only a site whose masks have such values names them: its scores do not tell the group's classes apart."""
    image_dir: str = "image"
    """Folder of the images, inside the site's folder (or inside its `train` and `test` folders)."""
    mask_dir: str = "mask"
    """Folder of the masks, beside the images' folder."""
    split_file: str | None = None
    """CSV with the columns `image,split` or `subject,split` and optionally `site`; split is train, test or ignore; rows
    whose site is not `task_name` are left to the other sites. A relative path starts at the site's folder. For
    classification it is needed, with the images' classes in a column of their own."""
    class_column: str = "class"
    """Classification: the column of `split_file` that holds an image's class, one of `class_names`."""
    ignore_classes: list[str] = Field(default_factory=list)
    """Classification: classes of the table whose images are left out."""
    test_share: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of the patients held out for testing where neither `split_file` nor train and test folders say; 0: none."""
    split_seed: int = 1234
    """Seed of that split."""
    patient_pattern: str | None = None
    """Regular expression searched in a file's stem; its group (or the whole match) is the patient. Files of one patient
    are never on both sides of a split. None: each file is a patient of its own."""

    @field_validator("patient_pattern")
    @classmethod
    def _pattern_compiles(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        if groups > 1:
            raise ValueError(f"has {groups} groups; use one at most, (?:...) does not count as a group")
        return value

    @model_validator(mode="after")
    def _classes_come_from_a_table(self) -> Self:
        if self.task == "classification":
            if self.split_file is None or self.class_names is None:
                raise ValueError(
                    f"for classification give split_file, a table with the columns image, split and {self.class_column}, "
                    "and class_names, the classes that it names"
                )
            both = sorted(set(self.ignore_classes) & set(self.class_names))
            if both:
                raise ValueError(f"{both[0]} is in class_names and in ignore_classes")
        return self

    @model_validator(mode="after")
    def _groups_are_of_foreground_classes(self) -> Self:
        flat = [c for group in self.class_groups for c in group]
        unknown = sorted(c for c in flat if not 0 < c < self.num_classes)
        if unknown:
            raise ValueError(f"class_groups names class {unknown[0]}; a group has classes from 1 to {self.num_classes - 1}")
        if len(set(flat)) < len(flat) or any(len(group) < 2 for group in self.class_groups):
            raise ValueError(f"class_groups is {self.class_groups}; a group has two classes or more, none is in two groups")
        if flat and self.task == "classification":
            raise ValueError("class_groups is for segmentation")
        if flat and self.mask_values is None:
            raise ValueError("class_groups needs mask_values, which says at which sites a mask value stands for a group")
        if self.num_classes + len(self.class_groups) > 256:
            raise ValueError(f"{self.num_classes} classes and {len(self.class_groups)} groups are more than 256")
        return self

    @model_validator(mode="after")
    def _mask_values_give_classes(self) -> Self:
        last = self.num_classes + len(self.class_groups) - 1
        wrong = sorted({v for v in (self.mask_values or {}).values() if not 0 <= v <= last})
        if wrong:
            groups = f", groups of classes {self.num_classes} to {last}" if self.class_groups else ""
            raise ValueError(f"mask_values gives class {wrong[0]}, but classes are 0 to {self.num_classes - 1}{groups}")
        return self

    @property
    def groups(self) -> Groups:
        """Return `class_groups`."""
        return tuple(map(tuple, self.class_groups))

    @property
    def merged(self) -> list[int]:
        """Return the numbers of the groups that `mask_values` names."""
        named = set((self.mask_values or {}).values())
        return [i for i in range(len(self.class_groups)) if self.num_classes + i in named]


class SlicedKwargs(CommonDatasetKwargs):
    """What sets of slices of 3-D studies have: slices of one study are never on both sides of a split by study."""

    tasks = ("segmentation", "classification")

    img_channels: Literal[1, 3] = 1
    """1: grey, 3: grey repeated."""
    class_by: Literal["site", "positive"] = "site"
    """Classification: the class is the number of the site (from 0, as published), or whether a slice is positive."""
    split_by: Literal["study", "slice"] = "study"
    """What is held out for testing as a whole. `slice` (published as an option) tests on neighbours of training slices."""
    test_share: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Share of the studies, or slices, held out for testing; 0: none."""
    split_seed: int = 1234
    """Seed of that split."""
    test_count: int | None = Field(default=None, ge=0)
    """Number of studies, or slices, held out for testing instead of a share."""
    test_studies: list[str] | None = None
    """The studies held out for testing, by name, instead of a share."""
    negatives_per_positive: float | None = Field(default=None, ge=0)
    """Most negative training slices for each positive one, evenly chosen; none: all. 0 drops negatives."""
    same_study_ids: bool = False
    """Sites number their studies alike (1, 2, 3), so that a study id at two sites means nothing."""

    @model_validator(mode="after")
    def _whole_studies_are_named(self) -> Self:
        if self.test_studies is not None and self.split_by == "slice":
            raise ValueError("test_studies names whole studies, and split_by is slice")
        return self

    def _tissues(self) -> list[str]:
        """Return the names of the classes that a segmentation gives to pixels."""
        return super().names()

    def names(self) -> list[str]:
        """Return the names of the classes: of pixels for a segmentation, of slices for a classification."""
        if self.class_names is not None:
            return self.class_names
        if self.task == "segmentation":
            return self._tissues()
        sites = [f"site {i + 1}" for i in range(self.num_classes)]
        return ["negative", "positive"] if self.class_by == "positive" else sites

    @model_validator(mode="after")
    def _num_classes_fits_options(self) -> Self:
        class_count = len(self._tissues()) if self.task == "segmentation" else 2 if self.class_by == "positive" else None
        if class_count is not None and self.num_classes != class_count:
            raise ValueError(f"these options give {class_count} classes ({', '.join(self.names())}), num_classes says "
                             f"{self.num_classes}")  # fmt: skip
        return self


class MediastinumKwargs(SlicedKwargs):
    """Mediastinum tumour on CT: slices as 16-bit PNG, masks, and a table `meta.txt` (`relay prepare mediastinum`)."""

    num_classes: int = Field(default=2, ge=2, le=256)
    """Number of classes: tissue and tumour, and one more for each label that is added."""
    hu_min: float = -160.0
    """HU value of a file's 0: value + hu_min is HU."""
    hu_window: tuple[float, float] = (-160.0, 240.0)
    """HU values that become black and white."""
    background_label: bool = False
    """Air (below -500 HU and unlabelled) is class 0; tissue and tumour come after it. Needs an `hu_min` below -500."""
    bone_label: bool = False
    """Bone (above 150 HU and unlabelled) is one more class, the last."""

    def _tissues(self) -> list[str]:
        air, bone = ["air"] * self.background_label, ["bone"] * self.bone_label
        return [*air, "tissue", "tumour", *bone]

    @property
    def value_window(self) -> tuple[float, float]:
        """Return the HU values that become black and white."""
        return self.hu_window

    @model_validator(mode="after")
    def _values_are_hu(self) -> Self:
        if not self.hu_window[0] < self.hu_window[1]:
            raise ValueError(f"hu_window must rise, not {list(self.hu_window)}")
        if self.background_label and self.hu_min >= -500:
            raise ValueError(f"background_label is air below -500 HU, and with hu_min {self.hu_min:g} no file holds any")
        return self


class MidlineKwargs(SlicedKwargs):
    """Brain midline: `<study>/<slice>.jpg` with `mask_<slice>.png`."""

    num_classes: int = Field(default=2, ge=2, le=256)
    """Number of classes: brain and midline, and one more with `background_label`."""
    background_label: bool = False
    """Dark (below 10 of 255) and unlabelled is class 0; brain and midline come after it."""

    def _tissues(self) -> list[str]:
        return [*["background"] * self.background_label, "brain", "midline"]


class NnunetKwargs(SlicedKwargs):
    """A raw data set of nnU-Net: `dataset.json`, `imagesTr`, `labelsTr`; volumes are read slice by slice."""

    num_classes: int = Field(default=2, ge=2, le=256)
    """Number of classes, the background included, as `labels` of dataset.json has them."""
    channels: list[int] = Field(default=[0], min_length=1, max_length=3)
    """Numbers of the channels to read, of channel_names of dataset.json: one, or three that become an image's colours."""
    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """Direction of cutting."""
    select: Literal["labelled", "all"] = "labelled"
    """Which slices are used: those that show anything but background, or all."""
    every: int = Field(default=1, ge=1)
    """Only every so-many-th slice is used."""
    window: tuple[float, float] | None = None
    """Values, such as HU, that become black and white; none: the smallest and the largest of each slice."""

    @property
    def served_otherwise(self) -> str | None:
        """Return why a served model would see other images than in training; None: it sees the same."""
        if self.axis != "axial":
            return f"it learned from {self.axis} slices, and the service cuts volumes into axial ones"
        return "it learned from three channels, and the service reads one volume" if len(self.channels) > 1 else None

    @property
    def value_window(self) -> tuple[float, float] | None:
        """Return the values that become black and white, where they are the same for all volumes."""
        return self.window

    @model_validator(mode="after")
    def _channels_are_an_image(self) -> Self:
        if len(self.channels) == 2 or len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels is {self.channels}; give one channel, or three different ones")
        if len(self.channels) == 3 and self.img_channels != 3:
            raise ValueError("channels names three, and img_channels is 1; set it to 3")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"window must rise, not {list(self.window)}")
        return self


DATASETS = Registry(
    "data set", "relay_core.datasets", CommonDatasetKwargs,
    {
        "fundus": Entry(FundusKwargs, "relay_core.data.fundus:FundusLayout"),
        "folder": Entry(FolderKwargs, "relay_core.data.folder:FolderLayout"),
        "mediastinum-tumor": Entry(MediastinumKwargs, "relay_core.data.mediastinum:MediastinumLayout"),
        "midline": Entry(MidlineKwargs, "relay_core.data.midline:MidlineLayout"),
        "nnunet": Entry(NnunetKwargs, "relay_core.data.nnunet:NnunetLayout"),
    },
)  # fmt: skip
"""Data sets by name."""


class DatasetSettings(Choice):
    """The site's images."""

    registry = DATASETS
    kwargs: SerializeAsAny[CommonDatasetKwargs] = Field(default_factory=dict, validate_default=True)


def dataset_class(name: str) -> type[CommonDatasetKwargs]:
    """Return the settings class of data set `name`.

    Raises:
        RunFileError: there is no such data set.
    """
    try:
        kwargs_class = DATASETS[name].kwargs
    except KeyError:
        raise RunFileError(f"data set {DATASETS.unknown(name)}") from None
    assert issubclass(kwargs_class, CommonDatasetKwargs)
    return kwargs_class


def dataset_options(name: str, options: str) -> CommonDatasetKwargs:
    """Return the settings of data set `name` from a JSON object, as a run file has them below `dataset.kwargs`.

    Raises:
        RunFileError: there is no such data set, or `options` is not a JSON object, has an unknown key or a wrong value; the
            message names the key.
    """
    kwargs_class, label = dataset_class(name), "--options"
    try:
        raw: Any = json.loads(options)
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{label}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RunFileError(f'{label}: give a JSON object, for example {{"num_classes": 2}}')
    try:
        return kwargs_class.model_validate(raw)
    except ValidationError as error:
        raise RunFileError(explain(error, raw, kwargs_class, [Source(Path(label), None)], [((), 0)])) from None
