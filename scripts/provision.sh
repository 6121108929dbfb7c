#!/usr/bin/env bash
# Installs what Debian and Ubuntu have of what we need: provision.sh GROUP...
# For CI, the virtual machines (make setup-vm) and the Vagrantfile. Needs root.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

declare -A groups=(
	[base]="make iproute2 util-linux mount libbpf1 python3-venv"
	[vm]="qemu-system-x86 kmod cpio busybox-static debian-archive-keyring iproute2"
	[bcc]="python3-bpfcc"
	[headers]="linux-headers-$(uname -r)"
	[page]="chromium chromium-driver fonts-dejavu-core"
	[ruby]="ruby"
	[serve]="prometheus prometheus-alertmanager"
)

missing=()
for group in "$@"; do
	for package in ${groups[$group]:?there is no such group}; do
		dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
			missing+=("$package")
	done
done
if ((${#missing[@]})); then
	apt-get update -q
	wanted=()
	for package in "${missing[@]}"; do
		# bcc compiles against the running kernel's headers and no other's; a box that is older than its archive
		# runs a kernel that apt has no more headers of.
		if [[ $package == linux-headers-* ]] && ! apt-cache show "$package" >/dev/null 2>&1; then
			echo "apt has no $package; bcc does without where the kernel has BTF" >&2
		else
			wanted+=("$package")
		fi
	done
	apt-get install -q -y --no-install-recommends "${wanted[@]}"
fi
# The tests start their own.
if [[ -d /run/systemd/system ]]; then
	for service in prometheus prometheus-alertmanager; do
		[[ " ${missing[*]} " != *" $service "* ]] || systemctl disable --now "$service"
	done
fi
