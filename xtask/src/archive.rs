// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the package archive: from the host's own apt configuration, or as the user asks.

use std::process::Command;

use anyhow::{bail, Context, Result};

/// The environment variable that names the archive when the host's configuration does not.
pub(crate) const MIRROR_VARIABLE: &str = "ACCF_MIRROR";

/// The addresses of the two archives everything is installed from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Archive {
    /// The distribution, with its updates and backports.
    pub(crate) main: String,
    /// Its security updates.
    pub(crate) security: String,
}

impl Archive {
    /// Finds the archive: `mirror` if given, else `$ACCF_MIRROR`, else what apt is configured with.
    pub(crate) fn find(mirror: Option<&str>) -> Result<Self> {
        let said = mirror
            .map(str::to_owned)
            .or_else(|| std::env::var(MIRROR_VARIABLE).ok());
        if let Some(main) = said {
            return Ok(Self::from_main(&main));
        }
        let output = Command::new("apt-get")
            .args([
                "indextargets",
                "--format",
                "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
                "Created-By: Packages",
            ])
            .output()
            .context("cannot run apt-get to learn where packages come from")?;
        match Self::from_targets(&String::from_utf8_lossy(&output.stdout)) {
            Some(archive) => Ok(archive),
            None => bail!(
                "the host's apt configuration names no Debian archive over http(s): give \
                 one with --mirror URL or {MIRROR_VARIABLE}=URL (the address of a mirror's \
                 debian/ directory)"
            ),
        }
    }

    /// Derives the security archive from the main one's address.
    fn from_main(main: &str) -> Self {
        let main = main.trim_end_matches('/');
        Self {
            main: format!("{main}/"),
            security: format!("{main}-security/"),
        }
    }

    /// Reads `origin|label|address` lines.
    fn from_targets(targets: &str) -> Option<Self> {
        let mut main = None;
        let mut security = None;
        for line in targets.lines() {
            let mut fields = line.splitn(3, '|');
            let (origin, label, uri) = (fields.next()?, fields.next()?, fields.next()?);
            if !(uri.starts_with("http://") || uri.starts_with("https://")) {
                continue;
            }
            // Before the first `apt-get update` apt knows addresses but no origins.
            let named = |end: &str| uri.trim_end_matches('/').ends_with(end);
            let slot = match (origin, label) {
                ("Debian", "Debian-Security") => &mut security,
                ("Debian", "Debian") => &mut main,
                ("", _) if named("/debian-security") => &mut security,
                ("", _) if named("/debian") => &mut main,
                _ => continue,
            };
            slot.get_or_insert_with(|| uri.to_owned());
        }
        let derived = Self::from_main(&main?);
        Some(Self {
            security: security.unwrap_or(derived.security),
            ..derived
        })
    }
}

/// Returns the host's proxy settings as lines of an apt configuration.
pub(crate) fn proxy_settings() -> Result<Vec<String>> {
    let output = Command::new("apt-config")
        .arg("dump")
        .output()
        .context("cannot run apt-config")?;
    Ok(only_proxies(&String::from_utf8_lossy(&output.stdout)))
}

/// Picks the proxy settings out of a dumped configuration.
fn only_proxies(dump: &str) -> Vec<String> {
    dump.lines()
        .filter(|line| {
            ["Acquire::http::Proxy", "Acquire::https::Proxy"]
                .iter()
                .any(|name| line.starts_with(name))
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_taken_over() {
        let dump = "Acquire \"\";\nAcquire::http \"\";\n\
                    Acquire::http::Proxy \"http://proxy.example:3128\";\nDir::Etc \"etc\";\n";
        assert_eq!(
            only_proxies(dump),
            ["Acquire::http::Proxy \"http://proxy.example:3128\""]
        );
    }

    #[test]
    fn a_debian_host_names_both() {
        let targets = "Debian|Debian|http://mirror.example/debian/\n\
                       Debian|Debian|http://other.example/debian/\n\
                       Debian|Debian-Security|http://mirror.example/debian-security/\n";
        let archive = Archive::from_targets(targets).unwrap();
        assert_eq!(archive.main, "http://mirror.example/debian/");
        assert_eq!(archive.security, "http://mirror.example/debian-security/");
    }

    #[test]
    fn security_is_derived_when_not_configured() {
        let archive = Archive::from_targets("Debian|Debian|https://m.example/debian\n").unwrap();
        assert_eq!(archive.main, "https://m.example/debian/");
        assert_eq!(archive.security, "https://m.example/debian-security/");
    }

    #[test]
    fn addresses_count_before_the_first_update() {
        let archive = Archive::from_targets("||http://m.example/debian/\n").unwrap();
        assert_eq!(archive.main, "http://m.example/debian/");
    }

    #[test]
    fn other_distributions_and_transports_do_not_count() {
        let targets = "Ubuntu|Ubuntu|http://m.example/ubuntu/\n\
                       Debian|Debian|cdrom://disc/debian/\n\
                       Docker|Docker CE|https://d.example/linux/debian/\n";
        assert_eq!(Archive::from_targets(targets), None);
    }
}
