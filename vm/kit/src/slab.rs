// SPDX-License-Identifier: MIT OR Apache-2.0

//! How much memory the kernel's small objects take: `/proc/slabinfo`.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result};

/// A reading of all caches: the bytes of objects in use, by cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slabs {
    bytes: BTreeMap<String, i64>,
}

impl Slabs {
    /// Reads the kernel's caches.
    pub fn read() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?)
    }

    /// Reads them several times within `time`, and tells the least of each cache, which is exact to
    /// the object.
    ///
    /// Each processor has free objects at hand, which count as used: they are taken from it before
    /// each reading. Others are freed a while after they were used. Both only ever add.
    pub fn read_exactly(time: Duration) -> Result<Self> {
        const READINGS: u32 = 3;
        let mut least = Self::read()?;
        for _ in 0..READINGS {
            thread::sleep(time / READINGS);
            for name in least.bytes.keys() {
                let path = format!("/sys/kernel/slab/{name}/shrink");
                fs::write(&path, "1").with_context(|| path)?;
            }
            least.keep_least(&Self::read()?);
        }
        Ok(least)
    }

    /// Takes over what is less in another reading.
    fn keep_least(&mut self, other: &Self) {
        for (name, bytes) in &mut self.bytes {
            *bytes = other.bytes.get(name).map_or(0, |other| *other.min(bytes));
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut bytes = BTreeMap::new();
        // Two lines of headings.
        for line in text.lines().skip(2) {
            let (name, used) = cache(line).with_context(|| format!("/proc/slabinfo: `{line}`"))?;
            *bytes.entry(name).or_default() += used;
        }
        Ok(Self { bytes })
    }

    /// Returns how many bytes of a cache are in use; nothing, if there is no such cache.
    pub fn bytes(&self, cache: &str) -> Option<i64> {
        self.bytes.get(cache).copied()
    }

    /// Returns how many bytes each cache has grown by since `earlier`; caches that have not grown
    /// are left out.
    pub fn growth(&self, earlier: &Self) -> BTreeMap<String, i64> {
        self.bytes
            .iter()
            .filter_map(|(name, bytes)| {
                let growth = bytes - earlier.bytes.get(name).copied().unwrap_or(0);
                (growth != 0).then(|| (name.clone(), growth))
            })
            .collect()
    }
}

/// Returns a cache's name, and the bytes of its objects in use.
fn cache(line: &str) -> Option<(String, i64)> {
    let mut fields = line.split_whitespace();
    let name = fields.next()?;
    let objects: i64 = fields.next()?.parse().ok()?;
    let size: i64 = fields.nth(1)?.parse().ok()?;
    Some((name.to_owned(), objects.checked_mul(size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "slabinfo - version: 2.1\n\
        # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>\n";

    #[test]
    fn objects_in_use_count_with_their_size() {
        let before =
            Slabs::parse(&format!("{HEAD}a 3 10 64 1 1 : tunables\nb 1 1 8 1 1\n")).unwrap();
        let after =
            Slabs::parse(&format!("{HEAD}a 5 10 64 1 1\nb 1 1 8 1 1\nc 1 1 8 1 1\n")).unwrap();
        let growth: Vec<_> = after.growth(&before).into_iter().collect();
        assert_eq!(growth, [("a".to_owned(), 128), ("c".to_owned(), 8)]);
    }

    #[test]
    fn the_least_of_two_readings_is_kept() {
        let of = |lines| Slabs::parse(&format!("{HEAD}{lines}")).unwrap();
        let mut least = of("a 3 10 64 1 1\nb 1 1 8 1 1\nc 5 5 8 1 1\n");
        least.keep_least(&of("a 2 10 64 1 1\nb 2 2 8 1 1\n"));
        assert_eq!(least, of("a 2 10 64 1 1\nb 1 1 8 1 1\nc 0 0 8 1 1\n"));
    }

    #[test]
    fn other_lines_are_refused() {
        assert!(Slabs::parse(&format!("{HEAD}a x y z\n")).is_err());
    }
}
