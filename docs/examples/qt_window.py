"""A Qt window that talks to a server: callbacks come to Qt's thread by a signal.

python qt_window.py URL
"""

from __future__ import annotations

import sys

from PySide6 import QtCore, QtGui, QtWidgets

import wsthread


class Bridge(QtCore.QObject):
    """Brings jobs to the thread that it belongs to: a queued signal is taken from any thread."""

    posted = QtCore.Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.posted.connect(self.run, QtCore.Qt.ConnectionType.QueuedConnection)

    @QtCore.Slot(object)
    def run(self, job: object) -> None:
        job()  # type: ignore[operator]


class Window(QtWidgets.QWidget):
    """Owns the client and is its delegate. All of it runs on Qt's thread."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.setWindowTitle("wsthread")
        self.line = QtWidgets.QLineEdit(placeholderText="a message")
        self.log = QtWidgets.QPlainTextEdit(readOnly=True)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.line)
        layout.addWidget(self.log)
        self.line.returnPressed.connect(self.send)
        self.line.setEnabled(False)
        self.bridge = Bridge()
        self.client = wsthread.WebSocketClient(
            url,
            self,
            weak_delegate=True,
            dispatcher=wsthread.PostDispatcher(self.bridge.posted.emit),
        )
        self.client.connect(wait=False)

    def send(self) -> None:
        self.client.send(self.line.text())
        self.line.clear()

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:
        if self.client.state is wsthread.ConnectionState.DISCONNECTED:
            event.accept()
        else:
            event.ignore()  # on_state_change closes the window when the connection is over
            self.hide()
            self.client.disconnect(wait=False)

    def on_state_change(
        self, client: wsthread.WebSocketClient, state: wsthread.ConnectionState
    ) -> None:
        self.log.appendPlainText(state.name.lower())
        self.line.setEnabled(state is wsthread.ConnectionState.CONNECTED)
        if state is wsthread.ConnectionState.DISCONNECTED and not self.isVisible():
            self.close()
            QtWidgets.QApplication.quit()

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        self.log.appendPlainText(f"received: {message!r}")

    def on_error(self, client: wsthread.WebSocketClient, error: BaseException) -> None:
        self.log.appendPlainText(f"error: {error}")


def main() -> int:
    application = QtWidgets.QApplication(sys.argv[:1])
    application.setQuitOnLastWindowClosed(False)
    window = Window(sys.argv[1])
    window.show()
    return int(application.exec())


if __name__ == "__main__":
    sys.exit(main())
