//! What SQL clients do.
