//! The source of randomness, which code takes as a parameter so that tests can replace it.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// The random generator of the operating system failed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system's random generator failed")]
pub struct RngFailed;

/// A source of random bytes that are fit for secrets.
pub trait Rng: Send + Sync + 'static {
    /// Fills the whole buffer.
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngFailed>;
}

/// The cryptographic library's generator, seeded by the operating system.
#[derive(Debug, Default)]
pub struct SystemRng(SystemRandom);

impl Rng for SystemRng {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngFailed> {
        self.0.fill(buffer).map_err(|_| RngFailed)
    }
}

/// Returns `N` random bytes.
pub fn random<const N: usize>(rng: &dyn Rng) -> Result<[u8; N], RngFailed> {
    let mut bytes = [0; N];
    rng.fill(&mut bytes)?;
    Ok(bytes)
}
