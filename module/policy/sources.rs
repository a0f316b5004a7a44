// SPDX-License-Identifier: GPL-2.0-only

//! Which source has the most parked requests: at the bound, that one makes room.
//!
//! A *source* is an IPv4 address, or the /64 of an IPv6 address. Sources are hashed into
//! [`BUCKETS`] buckets, with a secret, and a bucket is taken for a source: sources that share one
//! count as one.

use core::ops::DerefMut;

use super::Nanos;

/// How many buckets there are.
pub const BUCKETS: usize = 256;

/// How many requests at most are counted with each one that is parked in the upper half of
/// `max_parked`. With two, all are counted when the bound is reached.
pub const COUNTED_WITH_NEWCOMER: usize = 2;

/// How many requests at most are counted before one is evicted. Usually none is left by then.
pub const COUNTED_BEFORE_EVICTION: usize = 64;

/// Returns whether a listener counts requests by source that parks one more beside `parked` others:
/// in the upper half of `max_parked`.
pub const fn counts_sources(max_parked: u32, parked: u64) -> bool {
    parked >= max_parked as u64 / 2
}

/// What is compared in a tournament of all buckets.
#[derive(Clone, Copy)]
enum Contest {
    /// Which one has the most requests; of two with equally many, the one whose oldest is older.
    Greediest,
    /// Which one has the oldest request.
    Oldest,
}

/// A bucket, and at the same place a node of the two tournaments among all buckets: 16 bytes.
///
/// Node 1 is the root; the children of node `n` are `2n` and `2n + 1`. Those of nodes from 128 on
/// are buckets: of node `n`, the buckets `2n - 256` and `2n - 255`. Node 0 is not used.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// When the oldest of its requests was parked; the end of time if there is none.
    oldest: Nanos,
    /// How many requests it has.
    count: u32,
    /// The winners at the node, by [`Contest`].
    winners: [u8; 2],
}

impl Bucket {
    /// Returns the first value of the bucket at this place.
    pub const fn new(place: usize) -> Self {
        let node = place as u8;
        // Of empty buckets, the first one of a subtree wins.
        let first = (node as u32) << (node.leading_zeros() + 1);
        Self {
            oldest: Nanos(u64::MAX),
            count: 0,
            winners: [first as u8; 2],
        }
    }
}

/// How many requests of each bucket are counted, and which bucket has the most, and which one the
/// oldest. Every change is O(log [`BUCKETS`]), and every answer O(1).
#[derive(Debug)]
pub struct Sources<B>(B);

impl<B: DerefMut<Target = [Bucket; BUCKETS]>> Sources<B> {
    /// Makes it of buckets that are as [`Bucket::new`] makes them.
    pub fn new(buckets: B) -> Self {
        Self(buckets)
    }

    /// Counts a request in `bucket` in, where the oldest one was parked at `oldest` now.
    pub fn count(&mut self, bucket: u8, oldest: Nanos) {
        let count = self.count_of(bucket).saturating_add(1);
        self.set(bucket, count, oldest);
    }

    /// Counts a request in `bucket` off. Of those that are left, the oldest was parked at `oldest`.
    pub fn uncount(&mut self, bucket: u8, oldest: Option<Nanos>) {
        let count = self.count_of(bucket).saturating_sub(1);
        self.set(bucket, count, oldest.unwrap_or(Nanos(u64::MAX)));
    }

    /// Returns how many requests of `bucket` are counted.
    pub fn count_of(&self, bucket: u8) -> u32 {
        self.bucket(bucket).count
    }

    /// Returns the bucket that has the most requests, or `None` if no request is counted. Of
    /// several, the one whose oldest request is the oldest.
    pub fn greediest(&self) -> Option<u8> {
        self.winner(Contest::Greediest)
    }

    /// Returns the bucket that has the oldest request, or `None` if no request is counted.
    pub fn oldest(&self) -> Option<u8> {
        self.winner(Contest::Oldest)
    }

    /// Returns up to `N` buckets with two requests or more, those with the most first. The second
    /// number is the count. O(`N` × [`BUCKETS`]).
    pub fn greediest_few<const N: usize>(&self) -> [Option<(u8, u32)>; N] {
        let mut few = [None; N];
        for bucket in 0..=u8::MAX {
            let mut next = Some((bucket, self.count_of(bucket))).filter(|(_, count)| *count > 1);
            for place in &mut few {
                let count = |entry: &Option<(u8, u32)>| entry.map_or(0, |(_, count)| count);
                if count(&next) > count(place) {
                    core::mem::swap(&mut next, place);
                }
            }
        }
        few
    }

    fn bucket(&self, bucket: u8) -> &Bucket {
        &self.0[usize::from(bucket)]
    }

    /// Returns the winner of a contest, unless all buckets are empty.
    fn winner(&self, contest: Contest) -> Option<u8> {
        let winner = self.winner_at(1, contest);
        (self.count_of(winner) != 0).then_some(winner)
    }

    fn winner_at(&self, node: u8, contest: Contest) -> u8 {
        self.bucket(node).winners[contest as usize]
    }

    /// Sets what is counted of a bucket, and repeats the contests that this may decide otherwise.
    fn set(&mut self, bucket: u8, count: u32, oldest: Nanos) {
        let before = *self.bucket(bucket);
        let place = &mut self.0[usize::from(bucket)];
        place.count = count;
        place.oldest = oldest;
        self.contest(bucket, Contest::Greediest);
        if before.oldest != oldest {
            self.contest(bucket, Contest::Oldest);
        }
    }

    /// Repeats the contests of a bucket whose value has changed, from the leaf to the root.
    fn contest(&mut self, bucket: u8, contest: Contest) {
        let mut node = 1 << 7 | bucket >> 1;
        while node != 0 {
            // Below the last row of nodes, this is the number of a bucket: its ninth bit is lost.
            let left = node << 1;
            let right = left | 1;
            let (one, other) = if node < 1 << 7 {
                (
                    self.winner_at(left, contest),
                    self.winner_at(right, contest),
                )
            } else {
                (left, right)
            };
            let winner = if self.beats(other, one, contest) {
                other
            } else {
                one
            };
            self.0[usize::from(node)].winners[contest as usize] = winner;
            node >>= 1;
        }
    }

    /// Returns whether bucket `one` beats bucket `other`.
    fn beats(&self, one: u8, other: u8, contest: Contest) -> bool {
        let (one, other) = (self.bucket(one), self.bucket(other));
        let is_older = one.oldest < other.oldest;
        match contest {
            Contest::Oldest => is_older,
            Contest::Greediest => one.count > other.count || one.count == other.count && is_older,
        }
    }
}
