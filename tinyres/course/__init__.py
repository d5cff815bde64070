"""The course: chapters that run (`chapter`), and exercises that say what a wrong answer got wrong (`exercise`)."""
