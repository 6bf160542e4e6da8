"""A session that can't say where its time goes."""

from condinst_infer.runtimes.ort import OrtSession


class Silent:
    """A session that can't say where its time went."""

    def __init__(self, session: OrtSession) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.metadata, self.run, self.close = session.metadata, session.run, session.close
