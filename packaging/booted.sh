# What test-booted and test-scripts share: a Debian machine, made by debootstrap and booted with real systemd in namespaces of
# its own (sourced, below target/ alone). `root` is where it lies; `leader` is its first process; it is stopped with who sources this.

# As debootstrap makes it; kept for the next time.
base=$PWD/target/booted-base
boot=
leader=
clean() { [ -z "$boot" ] || { kill "$boot" 2>/dev/null; wait "$boot" 2>/dev/null; } || true; }
trap clean EXIT

need() { command -v "$1" >/dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$2"; }; }
say() { printf '\n== %s\n' "$*"; }
# A command on the booted machine.
inside() { nsenter -t "$leader" -a env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND="${FRONTEND:-noninteractive}" "$@"; }
# A text that must be there.
has() { grep -qF -- "$2" <<<"$1" || fail "no \"$2\" in: $1"; }
has_not() { ! grep -qF -- "$2" <<<"$1" || fail "\"$2\" in: $1"; }
# Until a command succeeds.
until_true() {
    local what=$1
    shift
    for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
    fail "waited in vain: $what"
}

make_base() {
    local mirror release
    mirror=$(sed -n -E 's/^(deb|URIs:) *(\[[^]]*\] *)?(https?:[^ ]+).*/\3/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -1 || true)
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    rm -rf --one-file-system "$base"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,postfix,procps,iproute2,ca-certificates \
        "$release" "$base.new" "$mirror" >target/debootstrap-booted.log 2>&1 && mv "$base.new" "$base"
}

# machine DEB: a fresh one at $root, with the package in /root; not booted yet.
machine() {
    need debootstrap debootstrap
    need systemd-nspawn systemd-container
    clean
    mkdir -p target
    # A mirror that hiccups is tried once more.
    [ -d "$base" ] || make_base || make_base || { tail -20 target/debootstrap-booted.log >&2; echo 'FAILED: debootstrap' >&2; exit 1; }
    rm -rf --one-file-system "$root"
    cp -a --reflink=auto "$base/." "$root"
    cp "$1" "$root/root/activity-milter.deb"
}
booted() {
    systemd-nspawn -q --keep-unit --register=no -b --private-network -D "$root" >"$root.log" 2>&1 </dev/null &
    boot=$!
    for _ in $(seq 100); do leader=$(pgrep -P "$boot" | head -1) && [ -n "$leader" ] && break; sleep 0.1; done
    until_true "systemd" sh -c "nsenter -t $leader -a systemctl is-system-running | grep -Eq 'running|degraded'"
}
