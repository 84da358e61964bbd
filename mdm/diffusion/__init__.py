"""The process in the extended space (Eq. 1-3), its schedules, and drawing images from it (App. C)."""
