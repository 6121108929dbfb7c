#!/usr/bin/env bash
# Installs groups of Debian or Ubuntu packages: provision.sh GROUP...
# .ci/run, make setup-vm, make setup-bcc and the Vagrantfile run this script. It needs root.
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
	for package in ${groups[$group]:?unknown group $group}; do
		dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
			missing+=("$package")
	done
done
if ((${#missing[@]})); then
	apt-get update -q
	available=()
	for package in "${missing[@]}"; do
		# bcc can use only the headers of the running kernel. The archive removes them when it gets a newer kernel.
		if [[ $package == linux-headers-* ]] && ! apt-cache show "$package" >/dev/null 2>&1; then
			echo "apt has no $package; bcc works without it if the kernel has BTF" >&2
		else
			available+=("$package")
		fi
	done
	apt-get install -q -y --no-install-recommends "${available[@]}"
fi
# Stop the services that were just installed: the tests start Prometheus and Alertmanager themselves.
if [[ -d /run/systemd/system ]]; then
	for service in prometheus prometheus-alertmanager; do
		[[ " ${missing[*]} " != *" $service "* ]] || systemctl disable --now "$service"
	done
fi
