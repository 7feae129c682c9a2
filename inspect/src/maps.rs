//! How maps are called and how much memory they take.

use std::fs;

use aya_obj::{Map, generated::bpf_map_type};

/// What the kernel adds to every element of a hash table (`struct htab_elem`), and to every bucket.
const HASH_ELEMENT_BYTES: u64 = 48;
const HASH_BUCKET_BYTES: u64 = 16;
/// What it adds to every node of a prefix tree (`struct lpm_trie_node`).
const TRIE_NODE_BYTES: u64 = 40;
const POINTER_BYTES: u64 = 8;

/// The name of a map's type, as bpftool writes it.
pub fn type_name(map_type: u32) -> String {
    let Ok(known) = bpf_map_type::try_from(map_type) else {
        return format!("type {map_type}");
    };
    // The binding's own name is the kernel's: BPF_MAP_TYPE_LRU_HASH.
    format!("{known:?}").trim_start_matches("BPF_MAP_TYPE_").to_lowercase()
}

/// The names of the flags that a map is created with; `-` for none.
pub fn flags(flags: u32) -> String {
    const NAMES: [(u32, &str); 12] = [
        (1, "no_prealloc"),
        (1 << 1, "no_common_lru"),
        (1 << 2, "numa_node"),
        (1 << 3, "rdonly"),
        (1 << 4, "wronly"),
        (1 << 5, "stack_build_id"),
        (1 << 6, "zero_seed"),
        (1 << 7, "rdonly_prog"),
        (1 << 8, "wronly_prog"),
        (1 << 9, "clone"),
        (1 << 10, "mmapable"),
        (1 << 12, "inner_map"),
    ];
    let named = NAMES
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, name)| (*name).to_owned());
    let unnamed = flags & !NAMES.iter().fold(0, |all, (bit, _)| all | bit);
    let mut all: Vec<_> = named.collect();
    if unnamed != 0 {
        all.push(format!("{unnamed:#x}"));
    }
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}

/// About how many bytes the kernel takes for a map when it is full, on a machine with `cpus` processors; `None` for
/// types whose size depends on what they are filled with.
pub fn estimated_bytes(map: &Map, cpus: u64) -> Option<u64> {
    use bpf_map_type as kind;
    let entries = u64::from(map.max_entries());
    let key = u64::from(map.key_size()).next_multiple_of(8);
    let value = u64::from(map.value_size()).next_multiple_of(8);
    let buckets = entries.checked_next_power_of_two()? * HASH_BUCKET_BYTES;
    let hash = |value: u64| entries * (HASH_ELEMENT_BYTES + key + value) + buckets;
    Some(match kind::try_from(map.map_type()).ok()? {
        kind::BPF_MAP_TYPE_ARRAY => entries * value,
        kind::BPF_MAP_TYPE_PERCPU_ARRAY => entries * (POINTER_BYTES + value * cpus),
        kind::BPF_MAP_TYPE_HASH | kind::BPF_MAP_TYPE_LRU_HASH => hash(value),
        kind::BPF_MAP_TYPE_PERCPU_HASH | kind::BPF_MAP_TYPE_LRU_PERCPU_HASH => hash(POINTER_BYTES + value * cpus),
        kind::BPF_MAP_TYPE_HASH_OF_MAPS | kind::BPF_MAP_TYPE_DEVMAP_HASH | kind::BPF_MAP_TYPE_SOCKHASH => {
            hash(POINTER_BYTES)
        }
        kind::BPF_MAP_TYPE_LPM_TRIE => entries * (TRIE_NODE_BYTES + key + value),
        kind::BPF_MAP_TYPE_RINGBUF | kind::BPF_MAP_TYPE_USER_RINGBUF => entries,
        kind::BPF_MAP_TYPE_QUEUE | kind::BPF_MAP_TYPE_STACK => (entries + 1) * value,
        kind::BPF_MAP_TYPE_ARRAY_OF_MAPS
        | kind::BPF_MAP_TYPE_PROG_ARRAY
        | kind::BPF_MAP_TYPE_CGROUP_ARRAY
        | kind::BPF_MAP_TYPE_DEVMAP
        | kind::BPF_MAP_TYPE_CPUMAP
        | kind::BPF_MAP_TYPE_XSKMAP
        | kind::BPF_MAP_TYPE_SOCKMAP => entries * POINTER_BYTES,
        // The loader gives it an entry a processor where the object says 0.
        kind::BPF_MAP_TYPE_PERF_EVENT_ARRAY => (if entries == 0 { cpus } else { entries }) * POINTER_BYTES,
        _ => return None,
    })
}

/// How many processors the kernel reckons with, which is how many values a per-CPU map has.
pub fn possible_cpus() -> u64 {
    fs::read_to_string("/sys/devices/system/cpu/possible")
        .ok()
        .and_then(|ranges| count_cpus(&ranges))
        .unwrap_or(1)
}

/// Counts what is written like `0-3,8`.
fn count_cpus(ranges: &str) -> Option<u64> {
    ranges
        .trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)? + 1)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(map_type: bpf_map_type, key: u32, value: u32, entries: u32) -> Map {
        Map::new_from_params(map_type as u32, key, value, entries, 0)
    }

    #[test]
    fn types_are_called_as_bpftool_calls_them() {
        assert_eq!(type_name(9), "lru_hash");
        assert_eq!(type_name(27), "ringbuf");
        assert_eq!(type_name(4711), "type 4711");
    }

    #[test]
    fn flags_are_named_and_unknown_ones_are_not_hidden() {
        assert_eq!(flags(0), "-");
        assert_eq!(flags(1 | 1 << 10), "no_prealloc,mmapable");
        assert_eq!(flags(1 << 20 | 1), "no_prealloc,0x100000");
    }

    #[test]
    fn values_of_per_cpu_maps_count_once_a_processor() {
        let array = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, 12, 100);
        assert_eq!(estimated_bytes(&array, 4), Some(100 * 16));
        let per_cpu = map(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, 4, 12, 100);
        assert_eq!(estimated_bytes(&per_cpu, 4), Some(100 * (8 + 16 * 4)));
    }

    #[test]
    fn a_hash_table_has_its_elements_and_a_power_of_two_of_buckets() {
        let hash = map(bpf_map_type::BPF_MAP_TYPE_HASH, 4, 8, 1000);
        assert_eq!(estimated_bytes(&hash, 1), Some(1000 * (48 + 8 + 8) + 1024 * 16));
    }

    #[test]
    fn ranges_of_processors_are_counted() {
        assert_eq!(count_cpus("0-3,8\n"), Some(5));
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("nonsense"), None);
    }
}
