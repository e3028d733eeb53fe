"""TensorBoard event files, written in the caller's thread.

tensorboardX's own writer hands events to a thread over a short queue: when that thread dies, of a full disk say, the
next events wait for ever. Here a failure to write is raised where it happens.
"""

import os
import pathlib
import time

FLUSH_SECONDS = 10.0


class TensorBoard:
    """An event file in `folder`.

    Args:
      start_step: what earlier files of the folder hold of later steps is no longer shown.
    """

    def __init__(self, folder: pathlib.Path, start_step: int = 0):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self.events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self.flushed = 0.0
        self._write(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._flush_now_and_then()

    def text(self, step: int, name: str, text: str) -> None:
        from tensorboardX.summary import text as text_summary

        self._write(step, summary=text_summary(name, text))
        self._flush_now_and_then()

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        with Image.open(path) as file:
            width, height, channels = *file.size, len(file.getbands())
        picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
        self._write(step, summary=Summary(value=[Summary.Value(tag=name, image=picture)]))
        self._flush_now_and_then()

    def _write(self, step: int, **content) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.events.write_event(Event(wall_time=time.time(), step=step, **content))

    def _flush_now_and_then(self) -> None:
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.events.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        self.events.close()
