"""The web page: HTML made here, htmx and uPlot for what is live. `mount_page` puts it into the application.

Everything it shows and does goes through the services, as our own endpoints do; what streams are `/api/logs` and
`/api/events/stream`. Not here: who may do what (`server.authentication`).
"""

from tutelage.server.page.mounting import mount_page

__all__ = ["mount_page"]
