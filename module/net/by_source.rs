// SPDX-License-Identifier: GPL-2.0-only

//! Parked requests that are counted by source: a list for each bucket of sources.

use kernel::{
    list::{
        List,
        ListArc, //
    },
    prelude::*,
    sync::ArcBorrow, //
};
use pin_init::init_array_from_fn;

use crate::policy::{
    Bucket,
    Sources,
    BUCKETS, //
};

use super::{
    bindings,
    parked_request::ParkedRequest,
    reqsk::Source,
    sockopt::{
        SourceInfo,
        SOURCES, //
    }, //
};

/// How many requests of a bucket are looked at to find which source has most of them.
const LOOKED_AT: usize = 16;

/// How many requests of a bucket are passed from its front, before one is inserted from the back.
const FROM_FRONT: usize = 64;

/// The counted requests of a listener, by bucket. None of them is expired.
///
/// # Invariants
///
/// Each list has the requests whose source is in the bucket of its number, in the order in which
/// they were parked; `sources` has their number, and when the oldest was parked.
pub(crate) struct BySource {
    lists: KBox<[List<ParkedRequest>; BUCKETS]>,
    sources: Sources<KBox<[Bucket; BUCKETS]>>,
    /// The secret of the hash.
    key: bindings::siphash_key_t,
}

impl BySource {
    /// Makes empty lists: 6 KiB. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: there is no memory.
    pub(crate) fn new() -> Result<Self> {
        // In place: the arrays are too large for the stack.
        let lists = KBox::init(init_array_from_fn(|_| List::new()), GFP_KERNEL_ACCOUNT)?;
        let buckets = KBox::init(init_array_from_fn(Bucket::new), GFP_KERNEL_ACCOUNT)?;
        // SAFETY: May be called in any context.
        let random = || unsafe { bindings::get_random_u64() };
        // INVARIANT: All lists are empty, and so are all buckets.
        Ok(Self {
            lists,
            sources: Sources::new(buckets),
            key: bindings::siphash_key_t {
                key: [random(), random()],
            },
        })
    }

    /// Returns the bucket of a source.
    fn bucket_of(&self, source: Source) -> u8 {
        // SAFETY: Computes on its arguments; the key is in memory for the call.
        let hash = unsafe { bindings::siphash_1u64(source.number(), &self.key) };
        hash as u8
    }

    /// Returns the request that was parked first.
    pub(crate) fn oldest(&self) -> Option<ArcBorrow<'_, ParkedRequest>> {
        self.first_of(self.sources.oldest()?)
    }

    /// Returns the oldest request of the bucket that has the most.
    pub(crate) fn oldest_of_greediest(&self) -> Option<ArcBorrow<'_, ParkedRequest>> {
        self.first_of(self.sources.greediest()?)
    }

    /// Returns the oldest request of a bucket.
    fn first_of(&self, bucket: u8) -> Option<ArcBorrow<'_, ParkedRequest>> {
        self.lists[usize::from(bucket)].iter().next()
    }

    /// Counts a request, whose source is `source`.
    ///
    /// The request belongs to the end of the list of its bucket, but for those of other CPUs that
    /// have read the clock later and were faster; or to the front, if it was there, has expired,
    /// could not be accepted and has returned. So this is O(number of CPUs), except for a request
    /// that left the middle, as a SYN inside of its window came, if TCP has refused the connection
    /// and not yet dropped the request when another CPU counts.
    ///
    /// # Safety
    ///
    /// `source` must be that of the request of `parked`: [`Self::remove`] takes it for the list.
    pub(crate) unsafe fn insert(&mut self, parked: ListArc<ParkedRequest>, source: Source) {
        let bucket = self.bucket_of(source);
        // INVARIANT: The request goes into the list of its source's bucket, by the contract of this
        // function, and to its place in the order of parking.
        let list = &mut self.lists[usize::from(bucket)];
        if let Err(parked) = insert_among_first(list, parked, FROM_FRONT) {
            insert_from_back(list, parked);
        }
        if let Some(oldest) = list.iter().next() {
            // INVARIANT: There is one request more, and this is the oldest one.
            self.sources.count(bucket, oldest.parked_at());
        }
    }

    /// Counts a request off, whose source is `source`. Returns `None` if it is in no list.
    ///
    /// # Safety
    ///
    /// `parked` must be in the list of its source here, or in no list, and `source` be that of its
    /// request.
    pub(crate) unsafe fn remove(
        &mut self,
        parked: &ParkedRequest,
        source: Source,
    ) -> Option<ListArc<ParkedRequest>> {
        let bucket = self.bucket_of(source);
        // SAFETY: The entry is in this list or in no list, by the contract of this function and the
        // type invariants.
        let removed = unsafe { self.lists[usize::from(bucket)].remove(parked) }?;
        self.uncount(bucket);
        Some(removed)
    }

    /// Takes out the request that was parked first.
    pub(crate) fn pop(&mut self) -> Option<ListArc<ParkedRequest>> {
        let bucket = self.sources.oldest()?;
        let popped = self.lists[usize::from(bucket)].pop_front();
        self.uncount(bucket);
        popped
    }

    /// Counts one request of a bucket off, which has left its list.
    fn uncount(&mut self, bucket: u8) {
        let oldest = self.first_of(bucket).map(|oldest| oldest.parked_at());
        // INVARIANT: There is one request less, and the oldest one that is left is this.
        self.sources.uncount(bucket, oldest);
    }

    /// Returns the sources that have the most counted requests, of those that have two or more; the
    /// first one has the most. The number is that of the bucket: other sources may be in it. The
    /// address is that of the source that has more than half of the oldest [`LOOKED_AT`] requests
    /// of the bucket, and zero if none has. O([`BUCKETS`]).
    ///
    /// # Safety
    ///
    /// The caller must hold the lock of the listener where the requests are parked.
    pub(crate) unsafe fn greediest(&self) -> [Option<SourceInfo>; SOURCES] {
        self.sources.greediest_few().map(|entry| {
            let (bucket, parked) = entry?;
            let first = || {
                let list = self.lists[usize::from(bucket)].iter().take(LOOKED_AT);
                // SAFETY: The entry is in the queue of the parking listener, whose lock the caller
                // holds, by the contract of this function.
                list.map(|parked| unsafe { parked.request() }.source())
            };
            let mut candidate = None;
            let mut lead = 0;
            // The majority vote of Boyer and Moore: if a source has more than half, it is this.
            for source in first() {
                if lead == 0 {
                    candidate = Some(source);
                }
                lead = if candidate == Some(source) {
                    lead + 1
                } else {
                    lead - 1
                };
            }
            let candidate = candidate?;
            let (mut of_candidate, mut looked_at) = (0, 0);
            for source in first() {
                of_candidate += usize::from(source == candidate);
                looked_at += 1;
            }
            Some(SourceInfo {
                address: if 2 * of_candidate > looked_at {
                    candidate.address()
                } else {
                    [0; 16]
                },
                parked,
            })
        })
    }
}

/// Inserts a request into a list that is in the order of parking, and stays so: before the first
/// one that was parked later. Returns the request if `most` others come before it.
///
/// O(`most`), and O(1) if it belongs to the end.
fn insert_among_first(
    list: &mut List<ParkedRequest>,
    parked: ListArc<ParkedRequest>,
    most: usize,
) -> Result<(), ListArc<ParkedRequest>> {
    let at = parked.parked_at();
    if list
        .cursor_back()
        .peek_prev()
        .is_none_or(|last| last.parked_at() <= at)
    {
        list.push_back(parked);
        return Ok(());
    }
    let mut cursor = list.cursor_front();
    for _ in 0..most {
        if cursor.peek_next().is_none_or(|next| next.parked_at() > at) {
            cursor.insert(parked);
            return Ok(());
        }
        cursor.move_next();
    }
    Err(parked)
}

/// Inserts a request into a list that is in the order of parking, and stays so. O(number of those
/// that were parked before it), and O(1) if it belongs to the end.
pub(crate) fn insert_from_front(list: &mut List<ParkedRequest>, parked: ListArc<ParkedRequest>) {
    if let Err(parked) = insert_among_first(list, parked, usize::MAX) {
        // Not reached: no list is as long.
        list.push_back(parked);
    }
}

/// Inserts a request into a list that is in the order of parking, and stays so. O(number of those
/// that were parked after it).
pub(crate) fn insert_from_back(list: &mut List<ParkedRequest>, parked: ListArc<ParkedRequest>) {
    let at = parked.parked_at();
    let mut cursor = list.cursor_back();
    while cursor
        .peek_prev()
        .is_some_and(|previous| previous.parked_at() > at)
    {
        cursor.move_prev();
    }
    cursor.insert(parked);
}
