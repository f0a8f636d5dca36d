#!/bin/sh
# Runs a highly available PostgreSQL on this machine: etcd, two nodes that Patroni manages, and a
# PgBouncer in front of each. Prints the URLs and what to try, and restarts what ends until Ctrl-C.
#
#   tests/examples/ha.sh
#   tests/examples/ha.sh kill-primary    # in another terminal: kill -9 of the primary's machine
#
# HA_DIR is the directory for all files, and HA_PORT the first of eight ports on loopback. All files
# are removed at the end; after a kill -9, by the next start. docs/ha.md is about production.
# Needs PostgreSQL, Patroni, etcd, PgBouncer, curl and flock:
#   apt-get install postgresql patroni etcd-server pgbouncer curl
set -eu
umask 077

dir=${HA_DIR:-${TMPDIR:-/tmp}/loangate-ha}
port=${HA_PORT:-8450} # of etcd
etcd_peer_port=$((port + 1))
node_port=$((port + 1))    # of PostgreSQL: node N has this port + N
rest_port=$((port + 3))    # of Patroni
bouncer_port=$((port + 5)) # of PgBouncer
etcd=http://127.0.0.1:$port
services='etcd node-1 node-2 pgbouncer-1 pgbouncer-2'
RESTART_DELAY=5     # seconds, so that the effect of a kill can be seen
FAILOVER_TIMEOUT=60 # seconds that a killed primary waits until the standby is primary
START_TIMEOUT=120

fail() {
    echo "ha.sh: $1" >&2
    exit 1
}

# Prints the programs' directory of the newest PostgreSQL, which Debian does not add to PATH.
postgres_directory() {
    newest=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
    [ -n "$newest" ] || newest=$(dirname "$(command -v postgres)") 2>/dev/null ||
        fail 'PostgreSQL is not installed: apt-get install postgresql'
    echo "$newest"
}

# Runs a command as a user that PostgreSQL accepts: it refuses to run as root.
as_database_user() {
    if [ "$(id -u)" = 0 ]; then
        exec setpriv --reuid=postgres --regid=postgres --init-groups "$@"
    fi
    exec "$@"
}

# Gives a file to that user.
give() {
    [ "$(id -u)" != 0 ] || chown postgres: "$@"
}

random_password() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}

# Returns whether a process with this id runs and belongs to this script. It names the directory, so
# that a process id that was used again is never taken for a service.
is_ours() {
    { tr '\0' ' ' <"/proc/$1/cmdline" | grep -qF -- "$dir/"; } 2>/dev/null
}

# Returns whether a service runs, and sets pid.
runs() {
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && is_ours "$pid"
}

# Returns whether PostgreSQL of a node runs, and sets pid. Patroni's end does not end it.
postgres_runs() {
    pid=$(head -n 1 "$dir/$1/data/postmaster.pid" 2>/dev/null) && is_ours "$pid"
}

start() {
    case $1 in
    etcd)
        exec etcd --name ha --data-dir "$dir/etcd" --initial-cluster-token ha \
            --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
            --listen-peer-urls "http://127.0.0.1:$etcd_peer_port" \
            --initial-advertise-peer-urls "http://127.0.0.1:$etcd_peer_port" \
            --initial-cluster "ha=http://127.0.0.1:$etcd_peer_port"
        ;;
    node-*) cd / && as_database_user patroni "$dir/$1/patroni.yml" ;;
    pgbouncer-*) cd / && as_database_user pgbouncer "$dir/$1/pgbouncer.ini" ;;
    esac >>"$dir/$1.log" 2>&1 9>&- </dev/null &
    echo $! >"$dir/$1.pid"
    # Until the program runs in place of this script, its process does not name the directory.
    while ! runs "$1" && kill -0 $! 2>/dev/null; do sleep 0.01; done
}

# Kills Patroni of a node, then PostgreSQL with its children: nothing shuts down.
kill_node() {
    ! runs "$1" || kill -KILL "$pid" 2>/dev/null || true
    ! postgres_runs "$1" ||
        kill -KILL "$pid" $(cat "/proc/$pid/task/$pid/children") 2>/dev/null || true
}

# Ends all services and removes their files.
clean_up() {
    for service in $services; do
        ! runs "$service" || kill -KILL "$pid" || true
    done
    for node in node-1 node-2; do
        ! postgres_runs $node || kill -QUIT "$pid" || true
        while postgres_runs $node; do sleep 0.1; done
        # PostgreSQL that was killed leaves a segment of shared memory. Its id is in the last line
        # but one.
        set -- $(sed -n 7p "$dir/$node/data/postmaster.pid" 2>/dev/null)
        [ -z "${2:-}" ] || ipcrm -m "$2" 2>/dev/null || true
    done
    for service in $services; do
        while runs "$service"; do sleep 0.1; done
    done
    rm -rf "$dir"
}

# Waits until a command succeeds. The service of this name must run.
until_works() {
    what=$1
    shift
    deadline=$(($(date +%s) + START_TIMEOUT))
    until "$@" >/dev/null 2>&1; do
        sleep 0.2
        if ! runs "$what" || [ "$(date +%s)" -ge $deadline ]; then
            fail "$what does not start: $(tail -n 20 "$dir/$what.log")"
        fi
    done
}

get() {
    curl -q -sS --noproxy '*' --max-time 5 --fail "$1"
}

# Returns whether Patroni says that a node has this role: primary, or sync (synchronous standby).
has_role() {
    get "http://127.0.0.1:$((rest_port + ${1#node-}))/$2" >/dev/null 2>&1
}

# Prints the name of the other node.
other() {
    echo "node-$((3 - ${1#node-}))"
}

configure_node() {
    name=$1
    number=${name#node-}
    mkdir "$dir/$name"
    cat >"$dir/$name/patroni.yml" <<END
scope: loangate
name: $name
etcd3:
  hosts: 127.0.0.1:$port
restapi:
  listen: 127.0.0.1:$((rest_port + number))
  connect_address: 127.0.0.1:$((rest_port + number))
  authentication:
    username: patroni
    password: '$rest_password'
bootstrap:
  dcs: # settings of the whole cluster; docs/ha.md says why
    ttl: 20
    loop_wait: 5
    retry_timeout: 5
    synchronous_mode: true
    synchronous_mode_strict: true
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        max_connections: 200
        log_parameter_max_length: 0
  initdb:
  - encoding: UTF8
  - locale: C
  - data-checksums
postgresql:
  listen: 127.0.0.1:$((node_port + number))
  connect_address: 127.0.0.1:$((node_port + number))
  data_dir: $dir/$name/data
  bin_dir: $postgres
  pgpass: $dir/$name/pgpass
  authentication:
    superuser:
      username: postgres
      password: '$superuser_password'
    replication:
      username: replicator
      password: '$replication_password'
  parameters:
    unix_socket_directories: ''
    # Shared memory in files does not outlive a killed server.
    dynamic_shared_memory_type: mmap
  pg_hba:
  - host all all 127.0.0.1/32 scram-sha-256
  - host replication replicator 127.0.0.1/32 scram-sha-256
# On a machine of its own: mode required. Here, it would restart this machine.
watchdog:
  mode: 'off'
END
    give "$dir/$name" "$dir/$name/patroni.yml"
}

# Each PgBouncer serves PostgreSQL of its own machine. So it needs no change at a failover.
configure_pgbouncer() {
    mkdir "$dir/pgbouncer-$1"
    printf '"gate" "%s"\n' "$gate_password" >"$dir/pgbouncer-$1/users.txt"
    cat >"$dir/pgbouncer-$1/pgbouncer.ini" <<END
[databases]
loangate = host=127.0.0.1 port=$((node_port + $1))
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $((bouncer_port + $1))
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $dir/pgbouncer-$1/users.txt
pool_mode = transaction
default_pool_size = 60
max_client_conn = 1000
server_login_retry = 1
END
    give "$dir/pgbouncer-$1" "$dir/pgbouncer-$1/users.txt" "$dir/pgbouncer-$1/pgbouncer.ini"
}

# Passwords are in files that only their users can read.
configure() {
    mkdir "$dir"
    : >"$dir/is-a-cluster"
    chmod 711 "$dir" # so that the user of PostgreSQL reaches its own files
    superuser_password=$(random_password)
    replication_password=$(random_password)
    rest_password=$(random_password)
    gate_password=$(random_password)
    printf '127.0.0.1:*:*:postgres:%s\n' "$superuser_password" >"$dir/superuser.pgpass"
    printf '127.0.0.1:*:*:gate:%s\n' "$gate_password" >"$dir/gate.pgpass"
    for number in 1 2; do
        configure_node "node-$number"
        configure_pgbouncer "$number"
    done
}

# Runs SQL of standard input at the first node as the superuser.
database() {
    PGPASSFILE=$dir/superuser.pgpass "$postgres/psql" -qX -v ON_ERROR_STOP=1 -h 127.0.0.1 \
        -p $((node_port + 1)) -U postgres >"$dir/psql.log" 2>&1 || fail "$(cat "$dir/psql.log")"
}

start_all() {
    start etcd
    until_works etcd get "$etcd/health"
    # The first node creates the cluster, and the second copies it.
    start node-1
    until_works node-1 has_role node-1 primary
    start node-2
    until_works node-2 has_role node-2 sync
    database <<END
CREATE ROLE gate LOGIN PASSWORD '$gate_password';
CREATE DATABASE loangate OWNER gate ENCODING 'UTF8' TEMPLATE template0;
END
    start pgbouncer-1
    start pgbouncer-2
}

# Prints a URL for these two ports.
url() {
    hosts=127.0.0.1:$1,127.0.0.1:$2
    echo "postgres://gate@$hosts/loangate?sslmode=disable&passfile=$dir/gate.pgpass"
}

print_what_to_try() {
    direct=$(url $((node_port + 1)) $((node_port + 2)))
    cat <<END
PostgreSQL runs on two nodes. Write into the configuration of a gate either

[ledger]
url = "$direct"

or, with PgBouncer:

[ledger]
url = "$(url $((bouncer_port + 1)) $((bouncer_port + 2)))"
direct_url = "$direct"

Try in another terminal:

# 1. run a gate with files and readers to try
loangate demo --ledger '$direct'
# 2. show the nodes: one leader, and one synchronous standby
patronictl -c $dir/node-1/patroni.yml list
# 3. kill the primary: within about 20 seconds, the standby is primary
HA_DIR=$dir HA_PORT=$port $script kill-primary
# 4. switch over, as for maintenance
patronictl -c $dir/node-1/patroni.yml switchover --force

The logs are $dir/*.log. What you kill restarts. Ctrl-C ends everything.
END
}

# Restarts a service. A node whose PostgreSQL was killed too waits until the other is primary:
# a primary that restarts sooner remains primary.
restart() {
    echo "$1 ended and restarts"
    case $1 in
    node-*)
        deadline=$(($(date +%s) + FAILOVER_TIMEOUT))
        until postgres_runs "$1" || has_role "$(other "$1")" primary ||
            [ "$(date +%s)" -ge $deadline ]; do
            sleep 0.2 9>&-
        done
        ;;
    *) sleep $RESTART_DELAY 9>&- ;;
    esac
    start "$1"
}

# Restarts what ends, as an init system does.
supervise() {
    while :; do
        for service in $services; do
            runs "$service" || restart "$service"
        done
        sleep 1 9>&-
    done
}

# Kills the primary, and prints its name.
kill_primary() {
    for node in node-1 node-2; do
        if has_role $node primary; then
            kill_node $node
            echo $node
            return
        fi
    done
    fail 'there is no primary at the moment'
}

PATH=$PATH:/usr/sbin
for needed in patroni etcd pgbouncer curl flock; do
    command -v $needed >/dev/null || fail "$needed is not installed: apt-get install postgresql \
patroni etcd-server pgbouncer curl util-linux"
done
case ${1:-} in
'') ;;
kill-primary)
    kill_primary
    exit
    ;;
*) fail "unknown command $1. The only one is kill-primary" ;;
esac
script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
postgres=$(postgres_directory)
exec 9>"$dir.lock"
flock -n 9 || fail "another cluster runs in $dir"
[ ! -e "$dir" ] || [ -e "$dir/is-a-cluster" ] || fail "$dir is no directory of this script"
trap 'clean_up; rm -f "$dir.lock"' EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM
clean_up # what a killed run left behind
configure
start_all
print_what_to_try
supervise
