#!/usr/bin/env bash
#
# Install Debian or Ubuntu packages: install_system_packages.sh PACKAGE...
# Does nothing if all are installed. Without root, prints the command to run as root and exits with status 1.
set -euo pipefail

die() {
    printf 'error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '       %s\n' "$@" >&2; fi
    exit 1
}

missing=()
for package in "$@"; do
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
        missing+=("$package")
done
((${#missing[@]})) || exit 0
command -v apt-get >/dev/null ||
    die "missing packages (Debian's names): ${missing[*]}." \
        "Install them with this system's package manager, or use conda: see the top of environment.yml."
root=()
if [[ $(id -u) != 0 ]]; then
    sudo -n true 2>/dev/null ||
        die "missing system packages, and this user cannot install them. Run as root:" \
            "apt-get update && apt-get install --yes --no-install-recommends ${missing[*]}"
    root=(sudo -n)
fi
# A machine that has just booted may still be running its own updates: wait for dpkg's lock.
"${root[@]}" apt-get update || echo "apt-get update failed; continuing with the present package lists"
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
    -o DPkg::Lock::Timeout=300 "${missing[@]}"
