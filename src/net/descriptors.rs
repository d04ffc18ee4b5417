//! Raises the limit on file descriptors. Each connection takes one descriptor, and on most systems
//! the limit of a process is low until the process asks for more.

use rustix::process::{Resource, getrlimit, setrlimit};

/// The number of file descriptors that files, the database and the runtime need.
const OTHERS: u64 = 64;

/// Raises the limit as far as the system allows, and warns if that is not enough for this many
/// connections.
pub fn take(connections: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // If this fails, the limit does not change, and the check below warns if it is too low.
        let _ = setrlimit(Resource::Nofile, limit);
    }
    let needed = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHERS);
    if let Some(available) = getrlimit(Resource::Nofile).current
        && available < needed
    {
        tracing::warn!(
            available,
            needed,
            "there are fewer file descriptors than connections may need: raise the limit (ulimit \
             -n, LimitNOFILE), or lower limits.max_connections"
        );
    }
}
