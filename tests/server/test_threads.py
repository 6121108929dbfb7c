import asyncio
import threading

from support import PATIENCE

from portwatch.server.threads import Limiter, restart_on_failure, run_in_thread


def test_the_event_loop_ends_even_if_work_in_a_thread_hangs():
    is_hanging, release = threading.Event(), threading.Event()

    def hang():
        is_hanging.set()
        release.wait(PATIENCE)

    async def start():
        limiter = Limiter(1)
        tasks = [asyncio.create_task(limiter.run(hang)) for _ in range(3)]
        assert await run_in_thread(lambda: is_hanging.wait(PATIENCE))
        return tasks

    asyncio.run(start())
    assert not release.is_set()
    release.set()


def test_if_a_background_task_fails_the_failure_is_logged_and_the_task_restarted(monkeypatch, caplog):
    monkeypatch.setattr("portwatch.server.threads._RESTART_DELAY", 0)
    attempts = []

    async def work():
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("not now")

    asyncio.run(restart_on_failure("the task", work))
    assert len(attempts) == 3
    assert caplog.messages == ["the task failed, restarting it"] * 2
