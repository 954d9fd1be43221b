"""Draw small bilingual picture-book scenes with exact boxes, and ask questions about them.

A scene is a pure function of its seed (`scene.make_scene`), a picture is a pure function of its scene (`drawing.draw_scene`), and the tasks are a
pure function of both (`tasks.make_tasks`). Nothing here imports torch.
"""
