#!/bin/sh
# A client of loangate in shell: downloads a file, in several runs if need be, and returns its loan.
#
#   export LOANGATE_URL=https://localhost:8443 LOANGATE_TOKEN=…
#   ./client.sh download /files/9788299999014/book.epub book.epub
#   ./client.sh return 9788299999014
#
# LOANGATE_CA is a file with the CA of the gate's certificate, if that CA is not a public one.
# Needs curl.
set -eu

CHUNK=$((8 * 1024 * 1024)) # bytes of one request; a killed run loses at most this much
MAX_FAILURES=8             # failures in a row before the client gives up

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM # runs the trap above too

# Sends a request. Sets $status, and leaves the head and the body in $work. The token goes through
# standard input, because every user of a machine can read the arguments of a process.
send() {
    : >"$work/head"
    : >"$work/body"
    broken=
    status=$(printf 'Authorization: Bearer %s\n' "$LOANGATE_TOKEN" |
        curl -q -sS --connect-timeout 10 --speed-limit 1 --speed-time 60 -H @- ${LOANGATE_CA:+--cacert "$LOANGATE_CA"} \
            -D "$work/head" -o "$work/body" -w '%{http_code}' "$@") || broken=yes
}

# Prints the value of a header of the last response. The name is in lower case.
header() {
    awk -v name="$1:" 'tolower($1) == name { sub(/^[^:]*: */, ""); sub(/\r$/, ""); value = $0 }
        END { print value }' "$work/head"
}

fail() {
    # A refusal is a problem document (RFC 9457) on one line: "type" for programs, "detail" for
    # people, "instance" for support.
    echo "failed with status $status: $(cat "$work/body")" >&2
    exit 1
}

# Waits before the next attempt if the failure is temporary. Otherwise ends the program.
wait_to_retry() {
    case $status in
        000 | 2??) pause=1 ;; # the connection broke
        429 | 502 | 503 | 504) pause=$(header retry-after | grep -x '[0-9]*') || pause=2 ;;
        *) fail ;;
    esac
    failures=$((failures + 1))
    [ "$failures" -le "$MAX_FAILURES" ] || fail
    sleep "${pause:-2}"
}

download() {
    path=$1 file=$2 part=$2.part tag=$2.part.etag
    failures=0
    while :; do
        # Without a strong ETag nobody can know whether the rest belongs to the same file.
        [ -s "$tag" ] || rm -f "$part"
        : >>"$part"
        size=$(($(wc -c <"$part")))
        set -- -r "$size-$((size + CHUNK - 1))"
        # The first request starts at 0 and may begin a loan. A request that continues never does.
        [ "$size" -eq 0 ] || set -- "$@" -H "If-Range: $(cat "$tag")"
        send "$@" "$LOANGATE_URL$path"
        case $status in
            206) cat "$work/body" >>"$part" ;;
            200) cat "$work/body" >"$part" ;; # the file has changed, or has no ranges
            416) [ "$(header content-range)" = "bytes */$size" ] || fail ;;
            *) wait_to_retry && continue ;;
        esac
        header etag | grep '^"' >"$tag" || true
        total=$(header content-range)
        total=${total##*/}
        size=$(($(wc -c <"$part")))
        [ "$status" != 200 ] || [ -n "$broken" ] || total=$size
        if [ "$size" -eq "${total:--1}" ]; then
            mv "$part" "$file"
            rm -f "$tag"
            return
        fi
        if [ -s "$work/body" ] && [ -s "$tag" ]; then failures=0; else wait_to_retry; fi
    done
}

return_loan() {
    failures=0
    while :; do
        send -X DELETE "$LOANGATE_URL/loans/$1"
        [ "$status" != 204 ] || return 0 # also if there is no loan
        wait_to_retry
    done
}

case ${1-} in
    download) download "$2" "$3" ;;
    return) return_loan "$2" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
