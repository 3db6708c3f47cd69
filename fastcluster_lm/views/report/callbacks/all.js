// Draw everything anew: after the page has opened, after a probe has come, or when the colours change.
theme.execute(cb_obj)
overview.execute(cb_obj)
maps_drawing.execute(cb_obj)
