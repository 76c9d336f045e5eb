"""Why a model is good or bad: `diagnose.diagnose` for a split, `diagnose.quick_diagnostics` for a training batch."""
