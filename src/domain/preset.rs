//! Policies that are ready to use, with limits from published guidance.

use std::time::Duration;

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

const fn hours(count: u64) -> Duration {
    minutes(count * 60)
}

const fn days(count: u64) -> Duration {
    hours(count * 24)
}

/// A policy that is ready to use. What it does not limit is as in the policy that is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// NIST SP 800-63B-4, section 2.1.3: reauthentication after at most 30 days; no limit of
    /// inactivity is required.
    NistAal1,
    /// NIST SP 800-63B-4, section 2.2.3: reauthentication after at most 24 hours, or after an hour
    /// of inactivity.
    NistAal2,
    /// NIST SP 800-63B-4, section 2.3.3: reauthentication after at most 12 hours, or after 15
    /// minutes of inactivity.
    NistAal3,
    /// OWASP Session Management Cheat Sheet, "Session Expiration": for high-value applications 2 to
    /// 5 minutes of inactivity, and 4 to 8 hours in all.
    OwaspHighValue,
    /// A sign-in on a device of one's own that lasts. No standard recommends its limits.
    RememberMe,
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 5] =
        [Self::NistAal1, Self::NistAal2, Self::NistAal3, Self::OwaspHighValue, Self::RememberMe];

    /// Returns the name of the preset, which is also that of its policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NistAal1 => "nist-aal1",
            Self::NistAal2 => "nist-aal2",
            Self::NistAal3 => "nist-aal3",
            Self::OwaspHighValue => "owasp-high-value",
            Self::RememberMe => "remember-me",
        }
    }

    /// Returns the preset with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.as_str() == name)
    }

    /// Returns the source of the limits.
    pub const fn source(self) -> &'static str {
        match self {
            Self::NistAal1 => "NIST SP 800-63B-4, 2.1.3 and 5.2",
            Self::NistAal2 => "NIST SP 800-63B-4, 2.2.3 and 5.2",
            Self::NistAal3 => "NIST SP 800-63B-4, 2.3.3 and 5.2",
            Self::OwaspHighValue => "OWASP Session Management Cheat Sheet",
            Self::RememberMe => "none",
        }
    }

    /// Returns the limits.
    pub const fn limits(self) -> PresetLimits {
        let (access_token_ttl, idle_timeout, absolute_lifetime) = match self {
            Self::NistAal1 => (minutes(10), days(30), days(30)),
            Self::NistAal2 => (minutes(10), hours(1), hours(24)),
            Self::NistAal3 => (minutes(5), minutes(15), hours(12)),
            Self::OwaspHighValue => (minutes(2), minutes(5), hours(4)),
            Self::RememberMe => (minutes(10), days(30), days(180)),
        };
        // NIST SP 800-63B-4, section 5.2: a reauthentication resets both time-outs.
        let reauthentication_extends =
            matches!(self, Self::NistAal1 | Self::NistAal2 | Self::NistAal3);
        PresetLimits { access_token_ttl, idle_timeout, absolute_lifetime, reauthentication_extends }
    }
}

/// The limits that a preset sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresetLimits {
    /// The longest lifetime of an access token.
    pub access_token_ttl: Duration,
    /// The time after which a session expires unless it is refreshed.
    pub idle_timeout: Duration,
    /// The longest lifetime of a session.
    pub absolute_lifetime: Duration,
    /// True if a reauthentication begins this lifetime anew.
    pub reauthentication_extends: bool,
}
