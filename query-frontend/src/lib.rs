//! A query's life: admission, limits, plan, fetch, evaluation, result.
