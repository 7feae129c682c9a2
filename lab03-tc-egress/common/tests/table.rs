//! The table of flows against a map that forgets nothing, and under floods (F3).

mod memory;

use std::collections::HashMap;

use lab01_count_packets_common::headers::Address;
use lab03_tc_egress_common::flow::{
    key::{Endpoint, FlowKey},
    state::State,
    table::{self, Buckets as _, Flow, Inserted, Place, WAYS},
};
use memory::Memory;
use proptest::prelude::*;

const HASH_KEY: [u64; 2] = [0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321];

fn tcp(client: u32, client_port: u16, server: u32, server_port: u16) -> FlowKey {
    let end = |address: u32, port| Endpoint {
        address: Address::from_ipv4(address.to_be_bytes()),
        port,
    };
    FlowKey::new(4, 6, end(client, client_port), end(server, server_port), 0).0
}

fn key(number: u32) -> FlowKey {
    tcp(0x0a00_0000 | number, 1000 + (number % 50_000) as u16, 0xc000_0201, 443)
}

fn flow(number: u32, expires_ns: u64) -> Flow {
    Flow {
        key: key(number),
        state: State::Established as u8,
        expires_ns,
        ..Flow::default()
    }
}

fn insert(memory: &Memory, place: Place, flow: &Flow, now_ns: u64) -> Inserted {
    // SAFETY: it comes from a reference.
    unsafe { table::insert(memory, place, &flow.key, flow, now_ns) }
}

fn place(number: u32, buckets: u32) -> Place {
    Place::of(key(number).hash(HASH_KEY), buckets)
}

#[derive(Clone, Debug)]
enum Action {
    Insert(u32, u64),
    Remove(u32),
    Find(u32),
    Pass(u64),
}

fn action() -> impl Strategy<Value = Action> {
    // Few flows and fewer places, so that buckets overflow.
    prop_oneof![
        4 => (0..60_u32, 1..100_u64).prop_map(|(number, lives)| Action::Insert(number, lives)),
        1 => (0..60_u32).prop_map(Action::Remove),
        2 => (0..60_u32).prop_map(Action::Find),
        1 => (0..20_u64).prop_map(Action::Pass),
    ]
}

proptest! {
    #[test]
    fn the_table_is_a_map_but_for_the_evictions_that_it_tells(actions in prop::collection::vec(action(), 1..300), buckets in 1..4_u32) {
        let memory = Memory::new(buckets);
        // Number → when its time is over, by bucket.
        let mut model: HashMap<u32, u64> = HashMap::new();
        let mut now = 1_000;
        for action in actions {
            match action {
                Action::Pass(time) => now += time,
                Action::Remove(number) => {
                    memory.release(place(number, buckets));
                    model.remove(&number);
                }
                Action::Find(number) => {
                    let found = table::find(&memory, place(number, buckets), &key(number));
                    // SAFETY: a flow that was found lies in the table, which nobody else changes.
                    let found = (!found.is_null()).then(|| unsafe { (*found).expires_ns });
                    prop_assert_eq!(found, model.get(&number).copied(), "{}", number);
                }
                Action::Insert(number, lives) => {
                    let bucket = place(number, buckets).bucket;
                    let mut beside: Vec<(u64, u32)> = model
                        .iter()
                        .filter(|(other, _)| **other != number && place(**other, buckets).bucket == bucket)
                        .map(|(other, expires)| (*expires, *other))
                        .collect();
                    let is_full = beside.len() == WAYS && !model.contains_key(&number);
                    let inserted = insert(&memory, place(number, buckets), &flow(number, now + lives), now);
                    if is_full {
                        beside.sort_unstable();
                        let soonest = beside[0].0;
                        prop_assert_eq!(inserted == Inserted::Evicted, soonest > now);
                        // Of several that end at the same moment either goes.
                        let gone: Vec<u32> = beside.iter().map(|(_, other)| *other).filter(|other| table::find(&memory, place(*other, buckets), &key(*other)).is_null()).collect();
                        prop_assert_eq!(gone.len(), 1);
                        prop_assert_eq!(model.remove(&gone[0]), Some(soonest));
                    } else {
                        prop_assert_eq!(inserted, Inserted::Free);
                    }
                    model.insert(number, now + lives);
                }
            }
            prop_assert_eq!(memory.flows().len(), model.len());
        }
    }

    #[test]
    fn both_directions_have_one_key(a in any::<[u8; 16]>(), b in any::<[u8; 16]>(), ports in any::<(u16, u16)>(), v6 in any::<bool>(), zone in 0..1_u32 << 24) {
        let address = |octets: [u8; 16]| if v6 { Address::from_ipv6(octets) } else { Address::from_ipv4([octets[0], octets[1], octets[2], octets[3]]) };
        let one = Endpoint { address: address(a), port: ports.0 };
        let other = Endpoint { address: address(b), port: ports.1 };
        let version = if v6 { 6 } else { 4 };
        let (there, from_low) = FlowKey::new(version, 17, one, other, zone);
        let (back, from_low_back) = FlowKey::new(version, 17, other, one, zone);
        prop_assert_eq!(there, back);
        prop_assert_eq!(there.hash(HASH_KEY), back.hash(HASH_KEY));
        prop_assert!(from_low != from_low_back || one == other);
        prop_assert_eq!(there.ends(), if from_low { (one, other) } else { (other, one) });
        // Whatever else is different, the key is.
        prop_assert_ne!(FlowKey::new(version, 6, one, other, zone).0, there);
        prop_assert_ne!(FlowKey::new(version, 17, one, other, zone + 1).0, there);
    }
}

#[test]
fn of_two_flows_with_one_tag_the_later_one_evicts_the_earlier_one() {
    let memory = Memory::new(1);
    let shared = place(1, 1);
    let found = |number| !table::find(&memory, shared, &key(number)).is_null();
    assert_eq!(insert(&memory, shared, &flow(1, 200), 100), Inserted::Free);
    assert_eq!(
        insert(&memory, shared, &flow(1, 300), 100),
        Inserted::Free,
        "its own place"
    );
    assert_eq!(insert(&memory, shared, &flow(2, 400), 100), Inserted::Evicted);
    assert_eq!((found(1), found(2)), (false, true));
    // So it is where only the protocol differs.
    let mut datagrams = flow(2, 500);
    datagrams.key.protocol = 0x0411;
    assert_eq!(insert(&memory, shared, &datagrams, 100), Inserted::Evicted);
    assert_eq!(
        insert(&memory, shared, &flow(3, 900), 500),
        Inserted::Free,
        "it was over"
    );
    memory.release(shared);
    assert_eq!(insert(&memory, shared, &flow(4, 900), 500), Inserted::Free);
    assert_eq!(memory.flows().len(), 1);
}

#[test]
fn eight_in_ten_thousand_flows_find_their_bucket_full_in_a_table_filled_to_its_number() {
    // Twice as many places as flows, as the loader makes them.
    const FLOWS: u32 = 100_000;
    const TABLES: u32 = 24;
    let buckets = FLOWS * 2 / WAYS as u32;
    let mut random = testbed::spread::numbers(2);
    let mut evicted = 0;
    for _ in 0..TABLES {
        let memory = Memory::new(buckets);
        let hash_key = std::array::from_fn(|_| random.next().unwrap());
        let of_this = (0..FLOWS).filter(|number| {
            let place = Place::of(key(*number).hash(hash_key), buckets);
            insert(&memory, place, &flow(*number, 1000), 1) == Inserted::Evicted
        });
        let of_this = of_this.count();
        assert_eq!(memory.flows().len() + of_this, FLOWS as usize);
        evicted += of_this;
    }
    // Eight flows a bucket on average, and what exceeds sixteen by Poisson's distribution: 0.000795 of them.
    let of_all = evicted as f64 / f64::from(FLOWS * TABLES);
    assert!((0.00072..0.00088).contains(&of_all), "{of_all}");
}

/// The key of the flow with a number.
type Numbered = fn(u32) -> FlowKey;

/// Flows as networks have them: neighbouring addresses and ports, on one side or on both.
const NEIGHBOURS: [(&str, Numbered); 5] = [
    ("clients of one server", |n| {
        tcp(0x0a00_0000 + n, 1000, 0xc000_0201, 443)
    }),
    ("ports of one client", |n| {
        tcp(0x0a00_0001 + n / 50_000, 1000 + (n % 50_000) as u16, 0xc000_0201, 443)
    }),
    ("16 clients, many servers", |n| {
        tcp(0x0a00_0000 + n % 16, 1000, 0xc000_0000 + n / 16, 443)
    }),
    ("1000 clients, 100 servers", |n| {
        tcp(0x0a00_0000 + n % 1000, 1000, 0xc000_0000 + n / 1000, 443)
    }),
    ("both ports", |n| {
        tcp(
            0x0a00_0001,
            1000 + (n % 1000) as u16,
            0xc000_0201,
            2000 + (n / 1000) as u16,
        )
    }),
];

#[test]
fn neighbouring_flows_fill_the_buckets_as_chance_would_whatever_the_key_of_the_hash() {
    const FLOWS: u32 = 100_000;
    const BUCKETS: u32 = FLOWS * 2 / WAYS as u32;
    let mut random = testbed::spread::numbers(1);
    for (flows, key) in NEIGHBOURS {
        for _ in 0..24 {
            let hash_key = std::array::from_fn(|_| random.next().unwrap());
            let mut loads = vec![0_u32; BUCKETS as usize];
            for number in 0..FLOWS {
                loads[Place::of(key(number).hash(hash_key), BUCKETS).bucket as usize] += 1;
            }
            // Pearson's test: by chance the sum is about as large as there are buckets, and the standard deviation of
            // its quotient is `sqrt(2 / BUCKETS)`, 0.013.
            let mean = f64::from(FLOWS) / f64::from(BUCKETS);
            let squares = loads.iter().map(|load| (f64::from(*load) - mean).powi(2) / mean);
            let quotient = squares.sum::<f64>() / f64::from(BUCKETS - 1);
            assert!(
                (0.94..1.06).contains(&quotient),
                "{flows}: {quotient} of what chance makes, with the key {hash_key:x?}"
            );
        }
    }
}

#[test]
fn what_is_outside_the_table_is_nowhere() {
    let memory = Memory::new(1);
    let outside = place(1, 1000);
    assert!(outside.bucket > 0);
    assert_eq!(insert(&memory, outside, &flow(1, 10), 1), Inserted::Nowhere);
    assert!(table::find(&memory, outside, &key(1)).is_null());
}
