#!/usr/bin/env bash
# A real S3 server for tests: Ceph's radosgw, with one monitor and one disk, on 127.0.0.1.
#
#     scripts/servers/radosgw.sh up DIR      starts it, and prints DIR/env when a PUT works
#     scripts/servers/radosgw.sh down DIR    ends it; DIR is left, with the logs
#
# It is there because its conditional PUTs are atomic and because it checks signatures, which the
# usual stand-ins do not. It needs (Debian) radosgw, ceph-osd and ceph-mon; where they are missing,
# it says so and returns 77. Everything lies in DIR, which is made anew; the ports are free ones, so
# that several can run beside each other; nothing needs root.
#
# STORE=memstore     the objects live in memory, and are gone at the end (the default)
# STORE=bluestore    they live in a file in DIR and survive kill -9
#
# DIR/env has shell assignments: what AWS's own tools read, and for tests
#   HAUL_TEST_S3_ENDPOINT, _REGION, _KEY, _SECRET   the same under names that no tool acts on
#   HAUL_TEST_S3_OTHER_KEY, _OTHER_SECRET           a user who sees none of the first one's buckets,
#                                                   and may only read where a policy lets it in
#   HAUL_TEST_S3_PID                                radosgw's process
# There are no new checksums (x-amz-checksum-…) in this server: it takes and forgets them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    echo "usage: ${BASH_SOURCE[0]} up|down DIR" >&2
    exit 2
}
[ $# = 2 ] || usage
verb=$1 store=${STORE:-memstore}
NAMES=(client.rgw osd.0 mon.a) # in the order in which they can be ended

# The process of a daemon, if it still is that: a number in a file may long be another's.
process() {
    local pid
    pid=$(cat "$1/$2.pid" 2>/dev/null) || return 1
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -- "$1/ceph.conf" || return 1
    echo "$pid"
}

# Ends one daemon: at once if it is willing, and within four seconds if it is not.
end() {
    local pid _
    pid=$(process "$1" "$2") || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 40); do
        process "$1" "$2" >/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

down() {
    local name
    for name in "${NAMES[@]}"; do
        end "$1" "$name"
    done
    rm -f "$1/env" # so that nobody takes it for one that runs
}

random() { # of N letters and digits
    python3 -c 'import secrets, string, sys
print("".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(int(sys.argv[1]))))' "$1"
}

up() {
    local dir=$1 fsid ports monitor s3 name
    fsid=$(cat /proc/sys/kernel/random/uuid)
    read -r monitor s3 ports < <(python3 "$here/ports.py" 2 8)
    rm -rf "$dir"
    mkdir -p "$dir"/{mon.a,osd.0,crash}
    chmod 700 "$dir" # keys lie in it
    cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$monitor]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind port min = ${ports%-*}
ms bind port max = ${ports#*-}
run dir = $dir
crash dir = $dir/crash
log file = $dir/\$name.log
mon cluster log file = $dir/cluster.log
pid file = $dir/\$name.pid
keyring = $dir/keyring
# No admin sockets: nobody asks them, and a long DIR would be too long for their names.
admin socket =
mon data = $dir/mon.\$id
osd data = $dir/osd.\$id
osd objectstore = $store
bluestore block size = 4294967296
bluestore block create = true
# One copy on one disk, and few placement groups: there is nothing to place.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
osd memory target = 939524096
# A monitor refuses to start (28) on a disk that is 95 % full, however much that leaves.
mon data avail warn = 1
mon data avail crit = 0
# A lone monitor needs not wait for others. Each new pool is a proposal, and a start makes seven.
paxos propose interval = 0.02
paxos min wait = 0.01
[osd]
# memstore asks for this; in [global] every tool would warn of it.
enable experimental unrecoverable data corrupting features = memstore
memstore device bytes = 4294967296
[client.rgw]
rgw data = $dir
rgw frontends = beast endpoint=127.0.0.1:$s3 tcp_nodelay=1
rgw thread pool size = 64
rgw enable usage log = false
rgw enable quota threads = false
rgw enable lc threads = false
rgw run sync thread = false
rgw dns name = localhost
CONF
    export CEPH_CONF=$dir/ceph.conf
    # The daemons have to sign among themselves: without, radosgw does not come up.
    ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
    for name in client.admin client.rgw osd.0; do
        ceph-authtool "$dir/keyring" --gen-key -n "$name" \
            --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >>"$dir/said" 2>&1
    done
    monmaptool --create --addv a "[v2:127.0.0.1:$monitor]" --fsid "$fsid" "$dir/monmap" >/dev/null
    ceph-mon -c "$dir/ceph.conf" --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
    ceph-mon -c "$dir/ceph.conf" -i a
    local disk
    disk=$(cat /proc/sys/kernel/random/uuid)
    ceph -c "$dir/ceph.conf" osd new "$disk" >/dev/null
    ceph-osd -c "$dir/ceph.conf" -i 0 --mkfs --osd-uuid "$disk" >>"$dir/said" 2>&1
    ceph-osd -c "$dir/ceph.conf" -i 0 >>"$dir/said" 2>&1

    local key secret other_key other_secret
    key=$(random 20) secret=$(random 40) other_key=$(random 20) other_secret=$(random 40)
    # Making a user waits until the disk is there.
    user "$dir" haul "$key" "$secret"
    user "$dir" other "$other_key" "$other_secret" --op-mask=read
    radosgw -c "$dir/ceph.conf" -n client.rgw >>"$dir/said" 2>&1
    cat >"$dir/env" <<ENV
AWS_ENDPOINT_URL_S3=http://127.0.0.1:$s3
AWS_REGION=default
AWS_ACCESS_KEY_ID=$key
AWS_SECRET_ACCESS_KEY=$secret
AWS_EC2_METADATA_DISABLED=true
HAUL_TEST_S3_ENDPOINT=http://127.0.0.1:$s3
HAUL_TEST_S3_REGION=default
HAUL_TEST_S3_KEY=$key
HAUL_TEST_S3_SECRET=$secret
HAUL_TEST_S3_OTHER_KEY=$other_key
HAUL_TEST_S3_OTHER_SECRET=$other_secret
ENV
    (
        set -a
        # shellcheck source=/dev/null
        . "$dir/env"
        python3 "$here/s3.py" ready
    )
    echo "HAUL_TEST_S3_PID=$(process "$dir" client.rgw)" >>"$dir/env"
}

user() { # DIR NAME KEY SECRET...
    local dir=$1 name=$2 key=$3 secret=$4
    shift 4
    timeout 60 radosgw-admin -c "$dir/ceph.conf" -n client.rgw user create --uid="$name" \
        --display-name="$name" --access-key="$key" --secret="$secret" "$@" >>"$dir/said" 2>&1
}

case $verb in
up)
    for program in ceph ceph-mon ceph-osd ceph-authtool monmaptool radosgw radosgw-admin; do
        if ! command -v "$program" >/dev/null; then
            echo "skipped: there is no $program here (Debian: radosgw ceph-osd ceph-mon)"
            exit 77
        fi
    done
    mkdir -p "$2"
    dir=$(cd "$2" && pwd)
    if [ -n "$(ls -A "$dir")" ] && ! [ -f "$dir/ceph.conf" ]; then
        echo "$dir is neither empty nor of an earlier start; it would be emptied" >&2
        exit 2
    fi
    down "$dir" # one of an earlier time, whose numbers would be lost
    # Somebody may take a port between its choice and its use, so a failure is tried once more.
    for attempt in 1 2; do
        set +e
        # Behind a pipe of their own: Ceph's programs make what they write to non-blocking, for all
        # that share it, and of those one that does not expect it would lose what it writes.
        (
            set -e
            up "$dir"
        ) </dev/null 2>&1 | cat >&2
        code=${PIPESTATUS[0]}
        set -e
        [ "$code" != 0 ] || break
        down "$dir"
        echo "radosgw did not start (attempt $attempt); the ends of the logs in $dir:" >&2
        tail -n 5 "$dir"/said "$dir"/*.log >&2 || true
    done
    [ "$code" = 0 ] || exit 1
    cat "$dir/env"
    ;;
down)
    [ -d "$2" ] || exit 0
    down "$(cd "$2" && pwd)"
    ;;
*) usage ;;
esac
