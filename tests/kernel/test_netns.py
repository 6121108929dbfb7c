"""Entering the network namespaces of other processes."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from portwatch.linux import netns


def namespace_of(actor):
    (namespace,) = (namespace for namespace in netns.all_namespaces() if namespace.inode == actor.netns)
    return namespace


def test_a_namespace_can_be_entered_even_if_the_process_in_its_path_has_exited(actor, make_actor):
    exited = make_actor(actor.namespace)
    namespace = replace(namespace_of(actor), path=exited.namespace)
    exited.kill()
    with netns.entered(namespace):
        assert os.stat("/proc/thread-self/ns/net").st_ino == actor.netns


def test_entering_a_namespace_does_not_move_other_threads(actor):
    with ThreadPoolExecutor(1) as other_thread:
        before = other_thread.submit(netns.own).result()
        with netns.entered(namespace_of(actor)):
            assert netns.own().inode == actor.netns
            assert other_thread.submit(netns.own).result() == before
