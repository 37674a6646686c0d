#!/bin/sh
# Start Redis with two users, who may do what ringing and hearing the doorbell takes, on the keys of that one queue, and
# nothing else: no administration, no scripts but Celery's lock, no other keys. The user without a name is switched off.
#   sh redis.sh [FURTHER LINES OF redis.conf...]
# SECRETS: folder of broker_api_password and broker_worker_password; RUN: folder, in memory, for the configuration.
set -eu
secrets="${SECRETS:-/run/secrets}"
run="${RUN:-/tmp}"
umask 077
hashed() { printf '%s' "$(cat "$secrets/$1")" | sha256sum | cut -d' ' -f1; }
keys='~relay* ~_kombu.binding* ~unacked*'
basic='+auth +hello +ping +select +multi +exec +discard +watch +unwatch'
cat > "$run/users.acl" <<END
user default off -@all
user relay-api on #$(hashed broker_api_password) resetchannels $keys -@all $basic +sadd +smembers +lpush +llen
user relay-worker on #$(hashed broker_worker_password) resetchannels $keys -@all $basic +sadd +srem +smembers +sismember +lpush +rpush +rpop +brpop +lrem +llen +zadd +zrem +zrevrangebyscore +zrange +hset +hget +hdel +set +get +del +expire +evalsha +script|load
END
{
  printf '%s\n' "aclfile $run/users.acl" 'bind 0.0.0.0' 'save ""' 'appendonly no' 'maxmemory 128mb' "dir $run"
  for line; do printf '%s\n' "$line"; done
} > "$run/redis.conf"
exec redis-server "$run/redis.conf"
