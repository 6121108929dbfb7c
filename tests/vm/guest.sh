#!/bin/sh
# Runs the tests that depend on the kernel, inside a virtual machine that scripts/vm.py booted.
# usage: guest.sh RESULT.xml; writes pytest's exit status to RESULT.status
set -eu
cd "$(dirname "$0")/../.."

mount_at() {
	mountpoint -q "$2" || mount -t "$1" "$1" "$2"
}
mount_at bpf /sys/fs/bpf
mount_at cgroup2 /sys/fs/cgroup
mount_at tracefs /sys/kernel/tracing
ip link set lo up

uname -rv
export PYTHONDONTWRITEBYTECODE=1
# The source tree is read-only here. hypothesis would warn that it cannot write its database there.
export HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
# Tests of the command line are left out: starting a command takes seconds in an emulated machine.
status=0
.venv/bin/pytest --verbose --color=no -m "not long" -p no:cacheprovider --durations=5 --junitxml="$1" \
	tests/kernel/test_bcc.py tests/kernel/test_random.py tests/kernel/test_scenarios.py tests/kernel/test_trees.py \
	tests/kernel/test_kernel_filter.py tests/kernel/test_core.py tests/kernel/test_netns.py \
	tests/engines/test_privileges.py::test_core_works_with_a_memlock_limit_of_0 \
	tests/engines/test_privileges.py::test_a_memlock_limit_that_cannot_be_raised_matters_on_old_kernels_only || status=$?
echo "$status" >"${1%.xml}.status"
