#!/bin/sh
# Runs a cluster on this machine: PostgreSQL, a simulated Bokbasen, a directory as storage, three
# gates and HAProxy in front of them. Prints what to try, and restarts what ends until Ctrl-C.
#
#   cargo build --release && tests/examples/cluster.sh
#
# LOANGATE is the program, CLUSTER_DIR the directory for all files, and CLUSTER_PORT the first of
# nine ports on loopback. Everything is removed at the end; after a kill -9, by the next start.
# Needs loangate, PostgreSQL 14 or later, HAProxy and flock: apt-get install postgresql haproxy.
set -eu
umask 077

program=${LOANGATE:-$(cd "$(dirname "$0")/../.." && pwd)/target/release/loangate}
dir=${CLUSTER_DIR:-${TMPDIR:-/tmp}/loangate-cluster}
port=${CLUSTER_PORT:-8440} # of HAProxy; gate N has port + N, and its admin listener port + 3 + N
sandbox_port=$((port + 7))
database_port=$((port + 8))
services='postgres sandbox gate-1 gate-2 gate-3 haproxy'
RESTART_DELAY=5 # seconds, so that the effect of a kill can be seen
START_TIMEOUT=60

fail() {
    echo "cluster.sh: $1" >&2
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

# Returns whether a service runs. A process of this script names its directory, so that a process
# id that was used again is never taken for a service.
runs() {
    {
        pid=$(cat "$dir/$1.pid") && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$dir/"
    } 2>/dev/null
}

start() {
    case $1 in
    postgres) cd / && as_database_user "$postgres/postgres" -D "$dir/data" ;;
    sandbox) exec "$program" sandbox --listen "127.0.0.1:$sandbox_port" --dir "$dir/sandbox" ;;
    gate-*) exec "$program" serve --config "$dir/$1/config.toml" ;;
    haproxy) exec haproxy -db -f "$dir/haproxy.cfg" ;;
    esac >>"$dir/$1.log" 2>&1 9>&- &
    echo $! >"$dir/$1.pid"
    # Until the program runs in place of this script, its process does not name the directory.
    while ! runs "$1" && kill -0 $! 2>/dev/null; do sleep 0.01; done
}

# Ends all services, the last started first, and removes their files.
clean_up() {
    for service in haproxy gate-3 gate-2 gate-1 sandbox postgres; do
        signal=TERM
        [ $service != postgres ] || signal=INT # TERM waits for its clients
        ! runs $service || kill -$signal "$pid" || true
    done
    tries=0
    for service in $services; do
        while runs $service; do
            tries=$((tries + 1))
            [ $tries -lt 100 ] || kill -KILL "$pid" || true
            sleep 0.1
        done
    done
    rm -rf "$dir"
}

# Waits until a command succeeds.
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

create_database() {
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    mkdir "$dir/data"
    printf '%s\n' "$password" >"$dir/data.password"
    chmod 711 "$dir" # so that the user of PostgreSQL reaches its own files
    [ "$(id -u)" != 0 ] || chown postgres: "$dir/data" "$dir/data.password"
    (cd / && as_database_user "$postgres/initdb" -D "$dir/data" --username=postgres \
        --auth=scram-sha-256 --pwfile="$dir/data.password" --encoding=UTF8 --locale=C) \
        >"$dir/initdb.log" 2>&1 ||
        fail "initdb failed: $(cat "$dir/initdb.log")"
    cat >>"$dir/data/postgresql.conf" <<END
listen_addresses = '127.0.0.1'
port = $database_port
unix_socket_directories = ''
max_connections = 200
END
    start postgres
    until_works postgres database_works
    database "CREATE ROLE gate LOGIN PASSWORD '$password'" >/dev/null
    database 'CREATE DATABASE loangate OWNER gate TEMPLATE template0' >/dev/null
}

database() {
    PGPASSWORD=$password "$postgres/psql" -qX -h 127.0.0.1 -p "$database_port" -U postgres -c "$1"
}

database_works() {
    database 'SELECT 1'
}

create_storage() {
    mkdir -p "$dir/storage/9788299999014" "$dir/storage/9788299999038"
    head -c 300000 /dev/urandom >"$dir/storage/9788299999014/book.epub"
    truncate -s 1G "$dir/storage/9788299999038/audio.mp3" # takes no space
}

# All gates have the same keys, and each has a directory of its own.
create_gates() {
    "$program" init --dir "$dir" >/dev/null
    printf '%s\n' "$password" >"$dir/certs/ledger.password"
    for number in 1 2 3; do
        mkdir "$dir/gate-$number"
        sed -e "s|127.0.0.1:8443|127.0.0.1:$((port + number))|" \
            -e "s|127.0.0.1:9443|127.0.0.1:$((port + 3 + number))|" \
            -e "s|127.0.0.1:9100|127.0.0.1:$sandbox_port|" \
            -e "s|http://127.0.0.1:9000/|file://$dir/storage|" \
            -e 's|"certs/|"../certs/|' \
            -e "s|sqlite:data/loangate.db\"|postgres://gate@127.0.0.1:$database_port/loangate?sslmode=disable\"\\
password = { file = \"../certs/ledger.password\" }|" \
            "$dir/config.toml" >"$dir/gate-$number/config.toml"
        cat >>"$dir/gate-$number/config.toml" <<END

[server]
drain = "2s"

# HAProxy passes all connections on from its own address.
[limits]
exempt_networks = ["127.0.0.0/8"]
END
        start "gate-$number"
    done
    for number in 1 2 3; do
        until_works "gate-$number" answers $((port + number))
    done
    token=$("$program" token reader --config "$dir/gate-1/config.toml" \
        --library NO-0301000 --borrower kari)
    printf 'Authorization: Bearer %s\n' "$token" >"$dir/kari"
}

# Returns whether the gate at this port answers readers.
answers() {
    curl -q -sS --noproxy '*' --cacert "$dir/certs/ca.pem" -o "$dir/answer" "https://localhost:$1/"
}

create_haproxy() {
    cat >"$dir/haproxy.cfg" <<END
# HAProxy passes TLS through, so the gates keep the certificate and see each request.
defaults
    mode tcp
    timeout connect 2s
    timeout check 5s
    timeout client 1h
    timeout server 1h
    option redispatch 1

frontend readers
    bind 127.0.0.1:$port
    default_backend gates

# A gate is ready while it can serve readers with loans, also without the database or Bokbasen.
backend gates
    balance leastconn
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost
    default-server check inter 500ms fall 2 rise 1
    server gate-1 127.0.0.1:$((port + 1)) port $((port + 4))
    server gate-2 127.0.0.1:$((port + 2)) port $((port + 5))
    server gate-3 127.0.0.1:$((port + 3)) port $((port + 6))
END
    start haproxy
    until_works haproxy answers "$port"
}

print_what_to_try() {
    request="curl -q -sS --noproxy '*' --cacert $dir/certs/ca.pem -H @$dir/kari"
    audio=files/9788299999038/audio.mp3
    cat <<END
Three gates run on one PostgreSQL. Readers use https://localhost:$port. Try in another terminal:

# 1. download a book through HAProxy, which begins a loan
$request -o /dev/null -w '%{http_code}\n' https://localhost:$port/files/9788299999014/book.epub
# 2. stream an audiobook from gate 1; leave it running
$request -o /dev/null -w '%{http_code}\n' --limit-rate 200k https://localhost:$((port + 1))/$audio
# 3. return it at gate 2: the stream of gate 1 ends within a second, and no gate opens the title
$request -w '%{http_code}\n' -X DELETE https://localhost:$((port + 2))/loans/9788299999038
# 4. kill a gate and repeat step 1: HAProxy uses the others
kill -9 \$(cat $dir/gate-1.pid)
# 5. kill the database and repeat step 1: who has a loan reads on
kill -QUIT \$(cat $dir/postgres.pid)
# 6. read the books of the simulated Bokbasen
curl -q -sS --noproxy '*' http://127.0.0.1:$sandbox_port/sandbox/books

The logs are $dir/*.log. What you kill restarts after $RESTART_DELAY seconds. Ctrl-C ends everything.
END
}

# Restarts what ends, as an init system does.
supervise() {
    while :; do
        for service in $services; do
            if ! runs $service; then
                echo "$service ended and restarts in $RESTART_DELAY seconds"
                sleep $RESTART_DELAY 9>&-
                start $service
            fi
        done
        sleep 1 9>&-
    done
}

[ -x "$program" ] || fail "$program is missing: run cargo build --release, or set LOANGATE"
PATH=$PATH:/usr/sbin
for needed in haproxy curl flock; do
    command -v $needed >/dev/null ||
        fail "$needed is not installed: apt-get install haproxy curl util-linux"
done
postgres=$(postgres_directory)
exec 9>"$dir.lock"
flock -n 9 || fail "another cluster runs in $dir"
[ ! -e "$dir" ] || [ -e "$dir/is-a-cluster" ] || fail "$dir is no directory of this script"
trap 'clean_up; rm -f "$dir.lock"' EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM
clean_up # what a killed run left behind
mkdir -p "$dir"
: >"$dir/is-a-cluster"
create_database
create_storage
start sandbox
create_gates
create_haproxy
print_what_to_try
supervise
