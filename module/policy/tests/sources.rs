// SPDX-License-Identifier: GPL-2.0-only

//! Eviction by source: the tournaments, against a naive search; and whole histories of a listener
//! at its bound, against the exact rule, which evicts the oldest request of the source that has
//! the most.

use std::collections::{
    HashMap,
    VecDeque, //
};

use accf_policy::{
    counts_sources,
    Bucket,
    Nanos,
    Sources,
    BUCKETS,
    COUNTED_BEFORE_EVICTION,
    COUNTED_WITH_NEWCOMER, //
};
use proptest::prelude::*;

fn empty() -> Sources<Box<[Bucket; BUCKETS]>> {
    Sources::new(Box::new(std::array::from_fn(Bucket::new)))
}

/// A parked request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    source: u64,
    at: u64,
}

/// The queue of a listener, as `net/` keeps it: requests that are counted, by bucket, and the
/// others, which were parked later.
struct Queue {
    max_parked: u32,
    hash: fn(u64) -> u8,
    now: u64,
    counted: Vec<VecDeque<Request>>,
    uncounted: VecDeque<Request>,
    sources: Sources<Box<[Bucket; BUCKETS]>>,
    /// How many are parked of each source, counted or not.
    exact: HashMap<u64, u32>,
}

impl Queue {
    fn new(max_parked: u32, hash: fn(u64) -> u8) -> Self {
        Self {
            max_parked,
            hash,
            now: 0,
            counted: vec![VecDeque::new(); BUCKETS],
            uncounted: VecDeque::new(),
            sources: empty(),
            exact: HashMap::new(),
        }
    }

    fn bucket(&self, source: u64) -> usize {
        usize::from((self.hash)(source))
    }

    fn requests(&self) -> impl Iterator<Item = Request> + '_ {
        self.counted
            .iter()
            .flatten()
            .chain(&self.uncounted)
            .copied()
    }

    fn len(&self) -> usize {
        self.exact.values().sum::<u32>() as usize
    }

    fn count(&mut self, most: usize) {
        for _ in 0..most {
            let Some(request) = self.uncounted.pop_front() else {
                return;
            };
            let bucket = self.bucket(request.source);
            self.counted[bucket].push_back(request);
            let oldest = self.counted[bucket][0];
            self.sources.count(bucket as u8, Nanos(oldest.at));
        }
    }

    /// Parks a request. Returns the one that is evicted for it.
    fn park(&mut self, source: u64) -> Option<Request> {
        self.now += 1;
        let parked = self.len() as u64;
        let request = Request {
            source,
            at: self.now,
        };
        self.uncounted.push_back(request);
        *self.exact.entry(source).or_default() += 1;
        if parked >= u64::from(self.max_parked) {
            self.count(COUNTED_BEFORE_EVICTION);
            // Else the timer counts on, and evicts.
            return self.uncounted.is_empty().then(|| self.evict())?;
        }
        if counts_sources(self.max_parked, parked) {
            self.count(COUNTED_WITH_NEWCOMER);
        }
        None
    }

    /// Evicts the oldest request of the source that has the most, or the oldest one if not all are
    /// counted.
    fn evict(&mut self) -> Option<Request> {
        let victim = if self.uncounted.is_empty() {
            self.counted[usize::from(self.sources.greediest()?)][0]
        } else {
            self.requests().min_by_key(|it| it.at)?
        };
        self.leave(victim);
        Some(victim)
    }

    fn leave(&mut self, request: Request) {
        let bucket = self.bucket(request.source);
        let list = &mut self.counted[bucket];
        if let Some(index) = list.iter().position(|it| *it == request) {
            list.remove(index);
            let oldest = list.front().map(|oldest| Nanos(oldest.at));
            self.sources.uncount(bucket as u8, oldest);
        } else {
            self.uncounted.retain(|it| *it != request);
        }
        let count = self.exact.get_mut(&request.source).expect("it was counted");
        *count -= 1;
        if *count == 0 {
            self.exact.remove(&request.source);
        }
    }

    /// Returns how many the source has that has the most.
    fn most(&self) -> u32 {
        self.exact.values().copied().max().unwrap_or(0)
    }
}

/// A hash without collisions for small numbers.
fn exact(source: u64) -> u8 {
    assert!(source < 256);
    source as u8
}

/// A hash like any other (the finalizer of SplitMix64).
fn mixed(source: u64) -> u8 {
    let mut hash = source.wrapping_add(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ hash >> 31) as u8
}

/// A random number below `limit`.
fn random(state: &mut u64, limit: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % limit
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The winners are those of a search through all buckets, and none once all are empty.
    #[test]
    fn the_winners_are_the_greediest_and_the_oldest(
        steps in prop::collection::vec((prop::sample::select(vec![0_u8, 1, 2, 3, 126, 127, 128, 200,
            254, 255]), any::<bool>(), 0..20_u64), 1..300),
    ) {
        let mut sources = empty();
        let mut lists: Vec<VecDeque<u64>> = vec![VecDeque::new(); BUCKETS];
        let check = |sources: &mut Sources<_>, lists: &mut Vec<VecDeque<u64>>| {
            let full = || (0..BUCKETS).filter(|bucket| !lists[*bucket].is_empty());
            let oldest = full().map(|bucket| lists[bucket][0]).min();
            let found = sources.oldest().map(|bucket| lists[usize::from(bucket)][0]);
            prop_assert_eq!(found, oldest);
            let rank = |bucket: usize| (lists[bucket].len(), u64::MAX - lists[bucket][0]);
            let most = full().map(rank).max();
            let found = sources.greediest().map(|bucket| rank(usize::from(bucket)));
            prop_assert_eq!(found, most);
            let mut counts: Vec<_> = full().map(|bucket| lists[bucket].len() as u32).collect();
            counts.retain(|count| *count > 1);
            counts.sort_unstable_by(|one, other| other.cmp(one));
            counts.truncate(4);
            let few: Vec<_> =
                sources.greediest_few::<4>().into_iter().flatten().map(|(_, n)| n).collect();
            prop_assert_eq!(few, counts);
            Ok(())
        };
        for (bucket, is_new, at) in steps {
            let list = &mut lists[usize::from(bucket)];
            if is_new {
                // A request may be older than those that are there.
                let place = list.partition_point(|it| *it <= at);
                list.insert(place, at);
                sources.count(bucket, Nanos(list[0]));
            } else if !list.is_empty() {
                list.remove(at as usize % list.len());
                sources.uncount(bucket, list.front().copied().map(Nanos));
            }
            check(&mut sources, &mut lists)?;
        }
        for bucket in 0..=u8::MAX {
            let list = &mut lists[usize::from(bucket)];
            while list.pop_front().is_some() {
                sources.uncount(bucket, list.front().copied().map(Nanos));
            }
            prop_assert_eq!(sources.count_of(bucket), 0);
        }
        prop_assert_eq!((sources.greediest(), sources.oldest()), (None, None));
    }

    /// Without collisions, and with clients that come and leave in any order: when the bound is
    /// reached, all but the newcomer are counted, and the victim is the oldest request of a source
    /// that has the most; of several such sources, of the one whose oldest is the oldest.
    #[test]
    fn the_victim_is_the_oldest_of_the_greediest(
        max_parked in 1..40_u32,
        steps in prop::collection::vec((0..12_u64, 0..4_u8, any::<prop::sample::Index>()), 1..400),
    ) {
        let mut queue = Queue::new(max_parked, exact);
        for (source, what, index) in steps {
            if what == 0 && queue.len() > 0 {
                let left = queue.requests().nth(index.index(queue.len())).unwrap();
                queue.leave(left);
                continue;
            }
            let before: Vec<Request> = queue.requests().collect();
            let Some(victim) = queue.park(source) else { continue };
            prop_assert!(queue.uncounted.is_empty());
            let newcomer = Request { source, at: queue.now };
            let all: Vec<Request> = before.into_iter().chain([newcomer]).collect();
            let count = |source| all.iter().filter(|it| it.source == source).count();
            let most = all.iter().map(|it| count(it.source)).max().unwrap();
            let expected = all.iter().filter(|it| count(it.source) == most).map(|it| it.at).min();
            prop_assert_eq!(Some(victim.at), expected);
            prop_assert_eq!(queue.len(), max_parked as usize);
        }
    }

    /// A pool is not evicted by a source that has more, in whatever order they come.
    #[test]
    fn a_pool_is_not_evicted_by_one_greedy_source(
        max_parked in 8..200_u32, share in 1..8_u32, seed: u64, others in 0..20_u64,
    ) {
        const GREEDY: u64 = 254;
        const POOL: u64 = 255;
        let pool = max_parked * share / 20;
        let mut queue = Queue::new(max_parked, exact);
        let mut come: Vec<u64> = vec![POOL; pool as usize];
        come.extend(vec![GREEDY; 4 * max_parked as usize]);
        come.extend(0..others.min(u64::from(max_parked / 10)));
        let mut state = seed;
        for index in 1..come.len() {
            come.swap(index, random(&mut state, index as u64 + 1) as usize);
        }
        for source in come {
            if let Some(victim) = queue.park(source) {
                prop_assert_eq!(victim.source, GREEDY);
            }
        }
    }

    /// If all clients come from one source, the oldest is evicted.
    #[test]
    fn of_one_source_the_oldest_is_evicted(max_parked in 1..100_u32, lowered in 1..100_u32) {
        let mut queue = Queue::new(max_parked, exact);
        let mut evicted = 0;
        for _ in 0..300 {
            if let Some(victim) = queue.park(7) {
                evicted += 1;
                prop_assert_eq!(victim.at, evicted);
            }
        }
        prop_assert_eq!(evicted, 300 - u64::from(max_parked));
        // `max_parked` is lowered.
        queue.max_parked = lowered;
        while queue.len() > lowered as usize {
            evicted += 1;
            prop_assert_eq!(queue.evict().map(|victim| victim.at), Some(evicted));
        }
    }
}

#[test]
fn requests_are_counted_in_the_upper_half() {
    for (max_parked, parked, counts) in [
        (1, 0, true),
        (2, 0, false),
        (2, 1, true),
        (64, 31, false),
        (64, 32, true),
        (65, 32, true),
        (u32::MAX, u64::from(u32::MAX) / 2 - 1, false),
        (u32::MAX, u64::from(u32::MAX), true),
    ] {
        assert_eq!(
            counts_sources(max_parked, parked),
            counts,
            "{max_parked} {parked}"
        );
    }
}

/// A pool came first, then many others with one connection each, and then a greedy source. None is
/// counted yet.
fn pool_others_greedy(max_parked: u32) -> Queue {
    let mut queue = Queue::new(max_parked, mixed);
    let others = (0..4000).map(|other| POOL + 1 + other);
    let greedy = std::iter::repeat_n(GREEDY, 4000);
    for source in std::iter::repeat_n(POOL, 20).chain(others).chain(greedy) {
        assert_eq!(queue.park(source), None);
    }
    assert_eq!(queue.uncounted.len(), 8020);
    queue
}

/// `max_parked` is lowered to just above what is parked, so that not all are counted when the bound
/// is reached: no request is evicted before all are, and then none of the pool.
#[test]
fn no_request_is_evicted_by_a_partial_count() {
    let mut queue = pool_others_greedy(100_000);
    queue.max_parked = 8020;
    let mut late = 0;
    for _ in 0..500 {
        match queue.park(GREEDY) {
            Some(victim) => assert!(victim.source != POOL, "the pool is evicted"),
            None => late += 1,
        }
    }
    // The timer of the module is faster.
    assert_eq!(late, 8020 / (COUNTED_BEFORE_EVICTION - 1));
    assert_eq!(queue.exact[&POOL], 20);
}

/// The namespace is full, and the listener less than half: until all are counted, the oldest is
/// evicted, though the pool may have the most of those that are counted.
#[test]
fn a_partial_count_evicts_the_oldest() {
    let mut queue = pool_others_greedy(100_000);
    for nth in 1..500 {
        assert_eq!(queue.park(GREEDY), None);
        queue.count(COUNTED_BEFORE_EVICTION);
        let victim = queue.evict().expect("one is parked");
        if queue.uncounted.is_empty() {
            assert_ne!(victim.at, nth);
            break;
        }
        assert_eq!(victim.at, nth);
    }
    assert!(queue.uncounted.is_empty());
}

/// Whom a full listener evicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The oldest request.
    Oldest,
    /// The oldest request of the source that has the most.
    Exact,
    /// The same, with sources in buckets: what the module does.
    Buckets,
}

/// Clients that come, one after the other.
struct Mix {
    name: &'static str,
    max_parked: u32,
    /// How many are parked of a pool, before any other comes.
    pool: u32,
    /// How many come later.
    newcomers: u32,
    /// Returns the source of a newcomer: one of the greedy ones, or a number below 2^40.
    source: fn(&mut u64) -> u64,
    /// How many of the other sources are parked at most: if one more comes, one is served.
    others: usize,
    /// How many greedy sources there are.
    greedy: u32,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    evicted: u32,
    /// How many of those were of the pool.
    of_pool: u32,
    /// How many were of other sources, none of them greedy.
    of_others: u32,
}

const POOL: u64 = 1 << 40;
const GREEDY: u64 = 1 << 41;

fn play(mix: &Mix, rule: Rule) -> Outcome {
    let mut outcome = Outcome::default();
    for seed in 1..=2 {
        let mut state = seed;
        let mut queue = Queue::new(mix.max_parked, mixed);
        let mut others = VecDeque::new();
        let source_of_seed = |source| source + (seed << 50);
        for _ in 0..mix.pool {
            assert_eq!(queue.park(source_of_seed(POOL)), None);
        }
        for _ in 0..mix.newcomers {
            let source = (mix.source)(&mut state);
            let is_full = queue.len() >= mix.max_parked as usize;
            let request = Request {
                source: source_of_seed(source),
                at: queue.now + 1,
            };
            let victim = if rule == Rule::Buckets || !is_full {
                queue.park(request.source)
            } else {
                // As many more as may be parked: none is evicted by `park()`.
                queue.max_parked += 1;
                queue.park(request.source);
                queue.max_parked -= 1;
                let most = queue.most();
                let victim = queue
                    .requests()
                    .filter(|it| rule == Rule::Oldest || queue.exact[&it.source] == most)
                    .min_by_key(|it| it.at);
                queue.leave(victim.expect("there is one"));
                victim
            };
            if source < POOL {
                others.push_back(request);
            }
            if let Some(victim) = victim {
                outcome.evicted += 1;
                outcome.of_pool += u32::from(victim.source == source_of_seed(POOL));
                let is_other = others.contains(&victim);
                outcome.of_others += u32::from(is_other);
                others.retain(|it| *it != victim);
            }
            if others.len() > mix.others {
                let served = random(&mut state, others.len() as u64) as usize;
                queue.leave(others.remove(served).expect("that index"));
            }
        }
    }
    outcome
}

/// Prints the table of `docs/design.md`: for each mix, how many were evicted, and by each rule, how
/// many of those were of the pool, and of others that are not greedy. The module's rule is nearly
/// the exact one.
///
/// `cargo test -p accf-policy --test sources table -- --nocapture`
#[test]
fn table_of_mixes() {
    let mixes = [
        Mix {
            name: "64 may be parked: a pool of 20, one greedy source",
            max_parked: 64,
            pool: 20,
            newcomers: 400,
            source: |_| GREEDY,
            others: 0,
            greedy: 1,
        },
        Mix {
            name: "1,024: a pool of 100, one greedy source, 300 clients of 1,000 others",
            max_parked: 1024,
            pool: 100,
            newcomers: 3000,
            source: |state| match random(state, 2) {
                0 => GREEDY,
                _ => random(state, 1000),
            },
            others: 300,
            greedy: 1,
        },
        Mix {
            name: "1,024: a pool of 100, five greedy sources, 300 clients of 1,000 others",
            max_parked: 1024,
            pool: 100,
            newcomers: 3000,
            source: |state| match random(state, 2) {
                0 => GREEDY + random(state, 5),
                _ => random(state, 1000),
            },
            others: 300,
            greedy: 5,
        },
        Mix {
            name: "1,024: a pool of 5, 100 greedy sources, 300 clients of 1,000 others",
            max_parked: 1024,
            pool: 5,
            newcomers: 3000,
            source: |state| match random(state, 2) {
                0 => GREEDY + random(state, 100),
                _ => random(state, 1000),
            },
            others: 300,
            greedy: 100,
        },
        Mix {
            name: "1,024: a pool of 5, 300 greedy sources, 300 clients of 1,000 others",
            max_parked: 1024,
            pool: 5,
            newcomers: 3000,
            source: |state| match random(state, 2) {
                0 => GREEDY + random(state, 300),
                _ => random(state, 1000),
            },
            others: 300,
            greedy: 300,
        },
        Mix {
            name: "2,048: a pool of 100, one greedy source, 1,700 clients of 100,000 others",
            max_parked: 2048,
            pool: 100,
            newcomers: 3500,
            source: |state| match random(state, 4) {
                0 => GREEDY,
                _ => random(state, 100_000),
            },
            others: 1700,
            greedy: 1,
        },
        Mix {
            name: "1,024: a pool of 10, no greedy source, 100,000 others that stay",
            max_parked: 1024,
            pool: 10,
            newcomers: 2000,
            source: |state| random(state, 100_000),
            others: usize::MAX,
            greedy: 0,
        },
    ];
    for mix in &mixes {
        let [oldest, exact, buckets] =
            [Rule::Oldest, Rule::Exact, Rule::Buckets].map(|rule| play(mix, rule));
        let cell = |it: &Outcome| format!("{}, {}", it.of_pool, it.of_others);
        println!(
            "| {} | {} | {} | {} | {} |",
            mix.name,
            buckets.evicted,
            cell(&oldest),
            cell(&exact),
            cell(&buckets)
        );
        assert!(oldest.of_pool > 0, "{}: no need of a rule", mix.name);
        if mix.greedy <= 5 {
            assert_eq!(buckets.of_pool, exact.of_pool, "{}", mix.name);
            // Sources that share the bucket of a greedy one.
            assert!(
                buckets.of_others <= exact.of_others + buckets.evicted / 50,
                "{}: {exact:?} {buckets:?}",
                mix.name
            );
        } else {
            // Many do.
            assert!(buckets.of_pool < oldest.of_pool, "{}", mix.name);
            assert!(buckets.of_others < oldest.of_others, "{}", mix.name);
        }
    }
}
