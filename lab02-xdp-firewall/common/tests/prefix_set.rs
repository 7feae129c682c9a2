//! Sets of prefixes against the most naive way to ask: every prefix in turn.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab02_xdp_firewall_common::prefix_set::{
    PrefixSet,
    build::{Content, Prefix},
    tree::MAX_LEVELS,
};
use proptest::prelude::*;

fn contains(set: &PrefixSet, content: &Content, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => set.contains_v4(content, address.octets()),
        IpAddr::V6(address) => set.contains_v6(content, &address.octets()),
    }
}

fn built(prefixes: &[Prefix]) -> (PrefixSet, Content) {
    let mut content = Content::default();
    let set = content.add(prefixes, 0x5eed);
    (set, content)
}

/// The addresses at which an answer changes, if one does: the ends of each prefix and their neighbours.
fn edges(prefix: Prefix) -> Vec<IpAddr> {
    let len = u32::from(prefix.len());
    match prefix.address() {
        IpAddr::V4(first) => {
            let first = first.to_bits();
            let last = first | u32::MAX.checked_shr(len).unwrap_or(0);
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                .map(|bits| Ipv4Addr::from(bits).into())
                .into()
        }
        IpAddr::V6(first) => {
            let first = first.to_bits();
            let last = first | u128::MAX.checked_shr(len).unwrap_or(0);
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                .map(|bits| Ipv6Addr::from(bits).into())
                .into()
        }
    }
}

fn assert_agreement(prefixes: &[Prefix], others: impl IntoIterator<Item = IpAddr>) -> usize {
    let (set, content) = built(prefixes);
    let mut asked = 0;
    for address in prefixes.iter().flat_map(|prefix| edges(*prefix)).chain(others) {
        let naive = prefixes.iter().any(|prefix| prefix.contains(address));
        assert_eq!(contains(&set, &content, address), naive, "{address} in {prefixes:?}");
        asked += 1;
    }
    asked
}

/// A reproducible stream of numbers (splitmix64), quicker than a generator of cases where a million are wanted.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn address(&mut self, v6: bool) -> IpAddr {
        if v6 {
            // Few distinct leading bits, so that prefixes nest and addresses meet them.
            let bits = u128::from(self.next() & 0x0003_0003_0003_0003) << 64 | u128::from(self.next());
            Ipv6Addr::from(bits).into()
        } else {
            Ipv4Addr::from(self.next() as u32).into()
        }
    }
}

#[test]
fn a_million_look_ups_among_prefixes_of_every_length_agree_with_the_naive_ones() {
    let mut numbers = Numbers(1);
    let mut asked = 0;
    let mut round = 0u64;
    while asked < 1_000_000 {
        let v6 = round % 2 == 1;
        let bits: u64 = if v6 { 128 } else { 32 };
        let count = 1 + numbers.next() % 260;
        let prefixes: Vec<Prefix> = (0..count)
            .map(|number| {
                // Every length occurs, the short ones rarely, or they would hold every address.
                let len = if number % 16 == 0 {
                    numbers.next() % (bits + 1)
                } else {
                    bits / 4 + numbers.next() % (bits * 3 / 4 + 1)
                };
                Prefix::new(numbers.address(v6), len as u8).unwrap()
            })
            .collect();
        let others: Vec<IpAddr> = (0..1000).map(|_| numbers.address(v6)).collect();
        asked += assert_agreement(&prefixes, others);
        round += 1;
    }
    assert!(round > 100, "{round} sets");
}

#[test]
fn every_single_length_alone_holds_what_it_should() {
    for (address, bits) in [("203.0.113.77", 32u8), ("2001:db8:1:2:3:4:5:6", 128)] {
        for len in 0..=bits {
            let prefix = Prefix::new(address.parse().unwrap(), len).unwrap();
            assert_agreement(
                &[prefix],
                [
                    address.parse().unwrap(),
                    "::".parse().unwrap(),
                    "0.0.0.0".parse().unwrap(),
                ],
            );
        }
    }
}

#[test]
fn lowest_and_highest_addresses_are_no_exception() {
    let ends = [
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    let ends: Vec<IpAddr> = ends.iter().map(|address| address.parse().unwrap()).collect();
    for chosen in 0..16u32 {
        let prefixes: Vec<Prefix> = (0..4)
            .filter(|bit| chosen >> bit & 1 == 1)
            .map(|bit| Prefix::single(ends[bit]))
            .collect();
        assert_agreement(&prefixes, ends.iter().copied());
        // With enough others beside them that the tree has several levels, and that single addresses have a table.
        let mut many = prefixes.clone();
        many.extend((1..5000u32).map(|number| Prefix::single(Ipv4Addr::from(number * 7919).into())));
        many.extend((1..300u32).map(|number| Prefix::new(Ipv4Addr::from(number << 20).into(), 14).unwrap()));
        let (set, content) = built(&many);
        for &end in &ends {
            let naive = many.iter().any(|prefix| prefix.contains(end));
            assert_eq!(contains(&set, &content, end), naive, "{end} with {prefixes:?}");
        }
    }
}

#[test]
fn nothing_is_in_an_empty_set() {
    let (set, content) = built(&[]);
    assert!(set.is_empty_v4() && set.is_empty_v6());
    assert!(!contains(&set, &content, "192.0.2.1".parse().unwrap()));
    assert!(!contains(&set, &content, "::".parse().unwrap()));
}

#[test]
fn everything_is_in_the_whole_of_a_family_and_nothing_of_the_other() {
    let (set, content) = built(&[Prefix::new("0.0.0.0".parse().unwrap(), 0).unwrap()]);
    for address in ["0.0.0.0", "192.0.2.1", "255.255.255.255"] {
        assert!(contains(&set, &content, address.parse().unwrap()), "{address}");
    }
    assert!(!contains(&set, &content, "::1".parse().unwrap()));
}

#[test]
fn sets_in_the_same_arrays_do_not_touch_one_another() {
    let mut content = Content::default();
    let sets: Vec<(PrefixSet, Vec<Prefix>)> = (0..5u32)
        .map(|number| {
            let prefixes: Vec<Prefix> = (0..5000u32)
                .map(|entry| {
                    Prefix::new(
                        Ipv4Addr::from(entry * 858_993 + number * 131_072).into(),
                        24 + (entry % 9) as u8,
                    )
                    .unwrap()
                })
                .collect();
            (content.add(&prefixes, u64::from(number)), prefixes)
        })
        .collect();
    for (set, prefixes) in &sets {
        for prefix in prefixes {
            assert!(contains(set, &content, prefix.address()));
        }
        let mut numbers = Numbers(9);
        for _ in 0..200 {
            let address = numbers.address(false);
            assert_eq!(
                contains(set, &content, address),
                prefixes.iter().any(|prefix| prefix.contains(address))
            );
        }
    }
}

#[test]
fn a_hundred_thousand_entries_take_five_levels_and_under_four_mebibytes() {
    let mut numbers = Numbers(3);
    let prefixes: Vec<Prefix> = (0..100_000)
        .map(|_| Prefix::new(numbers.address(false), 24).unwrap())
        .collect();
    let (set, content) = built(&prefixes);
    let levels = set.tree_v4.levels.iter().filter(|level| level.nodes > 0).count();
    const { assert!(5 <= MAX_LEVELS) };
    assert!(levels <= 5, "{levels} levels");
    assert!(size_of_val(content.nodes_v4.as_slice()) < 4 << 20);

    let singles: Vec<Prefix> = (0..100_000).map(|_| Prefix::single(numbers.address(false))).collect();
    let (set, content) = built(&singles);
    assert!(set.tree_v4.is_empty(), "single addresses alone need no tree");
    assert!(size_of_val(content.buckets_v4.as_slice()) < 4 << 20);
    assert!(singles.iter().all(|single| contains(&set, &content, single.address())));
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    // Small numbers of bits differ, so that prefixes nest, touch and repeat.
    prop_oneof![
        (any::<u32>(), 0..=32u8, 0..8u32).prop_map(|(bits, len, shift)| {
            Prefix::new(Ipv4Addr::from(bits & 0x0f0f_0f0f >> shift).into(), len).unwrap()
        }),
        (any::<u128>(), 0..=128u8).prop_map(|(bits, len)| {
            Prefix::new(
                Ipv6Addr::from(bits & 0x0f0f_0000_0000_0000_000f_0000_0000_0f0f).into(),
                len,
            )
            .unwrap()
        }),
        any::<u32>().prop_map(|bits| Prefix::single(Ipv4Addr::from(bits & 0xff).into())),
    ]
}

proptest! {
    #[test]
    fn nested_adjacent_and_repeated_prefixes_agree_with_the_naive_answer(
        prefixes in proptest::collection::vec(any_prefix(), 0..60),
        others in proptest::collection::vec(any::<u32>(), 20),
    ) {
        assert_agreement(&prefixes, others.into_iter().map(|bits| Ipv4Addr::from(bits & 0x0f0f_0fff).into()));
    }

    #[test]
    fn host_bits_are_cleared(bits in any::<u128>(), len in 0..=128u8) {
        let prefix = Prefix::new(Ipv6Addr::from(bits).into(), len).unwrap();
        prop_assert!(prefix.contains(Ipv6Addr::from(bits).into()));
        prop_assert!(prefix.contains(prefix.address()));
        prop_assert_eq!(Prefix::new(prefix.address(), len), Some(prefix));
    }
}

#[test]
fn lengths_beyond_the_address_are_no_prefix() {
    assert_eq!(Prefix::new("192.0.2.1".parse().unwrap(), 33), None);
    assert_eq!(Prefix::new("::1".parse().unwrap(), 129), None);
}
