//! How the values of a policy are written: the same text in all formats, read here alone.
//!
//! Every error says what is wrong with the text and how it should look.

use std::fmt;

use lab02_xdp_firewall_common::value::{self, WrittenPrefix};
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _, Visitor},
    ser::SerializeMap as _,
};

use crate::model::{
    Address, DEFAULT, DEFAULT_PRIORITY, ESSENTIAL, MALFORMED, Mac, Per, Prefix, Protocol, Range, Rate, Set,
};

/// The longest name of a policy, a rule or a set, in bytes.
pub const MAX_NAME: usize = 64;
/// The longest name of an interface (`IFNAMSIZ` less its terminating zero).
pub const MAX_INTERFACE: usize = 15;
/// The longest path of a cgroup.
pub const MAX_CGROUP: usize = 4096;
/// Where cgroup v2 is mounted on nearly every system.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Why a text is refused: what is wrong, and how it should look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong with it.
    pub message: String,
    /// How it should look.
    pub help: Option<String>,
}

impl Refusal {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
        }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// A prefix as short as it can be written: a single address without its length.
pub fn prefix(prefix: &Prefix) -> String {
    if *prefix == Prefix::single(prefix.address()) {
        prefix.address().to_string()
    } else {
        prefix.to_string()
    }
}

/// Reads a prefix without host bits.
pub fn parse_prefix(text: &str) -> Result<Prefix, Refusal> {
    let written: WrittenPrefix = text.parse().map_err(Refusal::from)?;
    match written.host_bits_of {
        None => Ok(written.prefix),
        Some(address) => Err(
            Refusal::new(format!("the prefix {text} has host bits: bits set behind its length")).help(format!(
                "write {} for the network, or {address} for the host alone",
                written.prefix
            )),
        ),
    }
}

/// Reads what `source` and `destination` name.
pub fn parse_address(text: &str) -> Result<Address, Refusal> {
    match text.strip_prefix('@') {
        Some(set) => parse_set_name(set).map(Address::Set),
        None => parse_prefix(text).map(Address::Prefix).map_err(|refusal| {
            // A set's name, of which the @ was forgotten, looks like no address at all.
            if is_name(text) && text.contains(|c: char| c.is_ascii_alphabetic() && !c.is_ascii_hexdigit()) {
                Refusal::new(format!("{text:?} is no IP address")).help(format!(
                    "write \"@{text}\" for the set {text}, or a prefix such as 203.0.113.0/24"
                ))
            } else {
                refusal
            }
        }),
    }
}

/// The messages of lab02 have cause and mend in one line.
pub(crate) fn split(message: String) -> (String, Option<String>) {
    match message.split_once("; ") {
        Some((message, help)) => (message.to_owned(), Some(help.to_owned())),
        None => (message, None),
    }
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        let (message, help) = split(message);
        Self { message, help }
    }
}

/// A kind of number that policies have ranges of.
pub trait Number: Copy + PartialOrd + fmt::Display + TryFrom<u64> {
    /// What it is, with its article.
    const WHAT: &'static str;
    /// The lowest.
    const LOWEST: u64;
    /// The highest.
    const HIGHEST: u64;
    /// How a list of them looks.
    const EXAMPLE: &'static str;
}

/// Ports.
impl Number for u16 {
    const WHAT: &'static str = "port";
    const LOWEST: u64 = 1;
    const HIGHEST: u64 = 65_535;
    const EXAMPLE: &'static str = "443, 8000-8999 or [80, 443]";
}

/// Types and codes of ICMP.
impl Number for u8 {
    const WHAT: &'static str = "ICMP type or code";
    const LOWEST: u64 = 0;
    const HIGHEST: u64 = 255;
    const EXAMPLE: &'static str = "8, 133-137 or [0, 8]";
}

/// Users and groups; the highest number of 32 bits means none.
impl Number for u32 {
    const WHAT: &'static str = "user or group";
    const LOWEST: u64 = 0;
    const HIGHEST: u64 = u32::MAX as u64 - 1;
    const EXAMPLE: &'static str = "1000, 2000-2999 or [0, 1000]";
}

/// A number as it stands in a policy, of which the format has read the sign and the digits.
pub fn number<T: Number>(number: i128) -> Result<T, Refusal> {
    let within = u64::try_from(number)
        .ok()
        .filter(|number| (T::LOWEST..=T::HIGHEST).contains(number))
        .and_then(|number| T::try_from(number).ok());
    within.ok_or_else(|| {
        let reserved = number == 0 && T::LOWEST == 1;
        let message = if reserved {
            format!("{} 0 is reserved and never on the wire", T::WHAT)
        } else {
            format!("{number} is no {}", T::WHAT)
        };
        Refusal::new(message).help(format!("{}s are numbers from {} to {}", T::WHAT, T::LOWEST, T::HIGHEST))
    })
}

/// Reads a range such as `8000-8999`, or a single number.
pub fn parse_range<T: Number>(text: &str) -> Result<Range<T>, Refusal> {
    let side = |text: &str| -> Result<T, Refusal> {
        let decimal = value::parse_decimal::<i128>(text);
        let has_leading_zero = text.len() > 1 && text.starts_with('0');
        match decimal {
            Some(decimal) if !has_leading_zero => number(decimal),
            _ => Err(Refusal::new(format!("{text:?} is no {}", T::WHAT)).help(format!("write {}", T::EXAMPLE))),
        }
    };
    // A sign is no separator.
    match text.split_once('-').filter(|(first, _)| !first.is_empty()) {
        None => side(text).map(Range::single),
        Some((first, last)) => {
            let (first, last) = (side(first.trim())?, side(last.trim())?);
            if first > last {
                return Err(
                    Refusal::new(format!("the range {text} is empty: {first} is above {last}"))
                        .help(format!("write {last}-{first}")),
                );
            }
            Ok(Range { first, last })
        }
    }
}

/// Reads a protocol's name.
pub fn parse_protocol(text: &str) -> Result<Protocol, Refusal> {
    let named = Protocol::NAMED
        .into_iter()
        .find_map(|(name, protocol)| (name == text).then_some(protocol));
    if let Some(protocol) = named {
        return Ok(protocol);
    }
    if let Some(number) = value::parse_decimal::<i128>(text) {
        return protocol_number(number);
    }
    let lower = text.to_ascii_lowercase();
    let meant = match lower.as_str() {
        "icmp6" | "ipv6-icmp" | "icmp-v6" => Some("icmpv6"),
        "sctp" => Some("132"),
        "udplite" | "udp-lite" => Some("136"),
        "dccp" => Some("33"),
        "gre" => Some("47"),
        "esp" => Some("50"),
        "ah" => Some("51"),
        "igmp" => Some("2"),
        _ => nearest(&lower, Protocol::NAMED.iter().map(|(name, _)| *name)),
    };
    let refusal = Refusal::new(format!("{text:?} is no protocol"));
    Err(match meant {
        Some(meant) => refusal.help(format!("write {meant}")),
        None if lower == "any" || lower == "all" => refusal.help("leave the key out for any protocol"),
        None => refusal.help("write tcp, udp, icmp, icmpv6 or a protocol's number from 0 to 255"),
    })
}

/// A protocol by its number.
pub fn protocol_number(number: i128) -> Result<Protocol, Refusal> {
    u8::try_from(number)
        .map(Protocol)
        .map_err(|_| Refusal::new(format!("{number} is no protocol")).help("protocols are numbers from 0 to 255"))
}

/// The units of bits a second, with how many bytes a second each is.
const BYTE_UNITS: [(&str, u64); 3] = [("kbit", 125), ("mbit", 125_000), ("gbit", 125_000_000)];
/// The highest rate of packets: one a nanosecond.
const MAX_PACKETS: u64 = 1_000_000_000;
/// The highest rate of bytes: 100 Gbit/s.
const MAX_BYTES: u64 = 12_500_000_000;

/// Reads a rate of packets: `10000/s`.
pub fn parse_packets(text: &str) -> Result<u64, Refusal> {
    let packets = text.strip_suffix("/s").and_then(value::parse_decimal);
    bounded_rate(
        packets.ok_or_else(|| {
            Refusal::new(format!("{text:?} is no rate of packets")).help("write packets a second, such as 10000/s")
        })?,
        MAX_PACKETS,
        "packets",
    )
}

/// Reads a rate of bytes: `1250000/s`, or in bits `500kbit`, `10mbit`, `1gbit`.
pub fn parse_bytes(text: &str) -> Result<u64, Refusal> {
    let refusal = || {
        Refusal::new(format!("{text:?} is no rate of bytes"))
            .help("write bytes a second, such as 1250000/s, or bits, such as 500kbit, 10mbit or 1gbit")
    };
    let lower = text.to_ascii_lowercase();
    let unit = BYTE_UNITS
        .into_iter()
        .find_map(|(name, bytes)| Some((lower.strip_suffix(name)?, bytes)));
    let bytes = match unit {
        Some((number, bytes)) => value::parse_decimal::<u64>(number)
            .map(|number| number.saturating_mul(bytes))
            .ok_or_else(refusal)?,
        None => lower
            .strip_suffix("/s")
            .and_then(value::parse_decimal)
            .ok_or_else(refusal)?,
    };
    bounded_rate(bytes, MAX_BYTES, "bytes")
}

/// A rate that is not zero and can be counted.
pub fn bounded_rate(rate: u64, highest: u64, what: &str) -> Result<u64, Refusal> {
    match rate {
        0 => Err(Refusal::new("a rate of 0 lets nothing pass after the burst").help("write `action: block`")),
        rate if rate > highest => Err(
            Refusal::new(format!("{rate} {what} a second are beyond what can be counted"))
                .help(format!("the highest rate is {highest}/s")),
        ),
        rate => Ok(rate),
    }
}

/// The highest burst, of packets or of bytes.
pub const MAX_BURST: u64 = 1 << 40;

/// A burst of one packet or byte at least.
pub fn burst(number: i128) -> Result<u64, Refusal> {
    u64::try_from(number)
        .ok()
        .filter(|burst| (1..=MAX_BURST).contains(burst))
        .ok_or_else(|| {
            Refusal::new(format!("a burst of {number} is not possible"))
                .help(format!("write a number from 1 to {MAX_BURST}, or leave the key out"))
        })
}

/// Reads a MAC address.
pub fn parse_mac(text: &str) -> Result<Mac, Refusal> {
    text.parse().map_err(Refusal::from)
}

/// A MAC address in its usual form.
pub fn mac(Mac(octets): &Mac) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

/// Whether a text is a name: letters, digits, `.`, `_` and `-`, and a letter or digit first.
pub fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Reads the name of a policy or a rule.
pub fn parse_name(text: &str) -> Result<String, Refusal> {
    if [ESSENTIAL, DEFAULT, MALFORMED].contains(&text) {
        return Err(Refusal::new(format!("the name {text:?} is taken"))
            .help("statistics show under it what no rule of the policy decided; choose another name"));
    }
    parse_set_name(text)
}

/// Reads the name of a set.
pub fn parse_set_name(text: &str) -> Result<String, Refusal> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    let refusal = match text.len() {
        0 => Refusal::new("a name cannot be empty"),
        length if length > MAX_NAME => Refusal::new(format!("a name of {length} bytes is too long")),
        _ => Refusal::new(format!("{text:?} is no name")),
    };
    Err(refusal.help(format!(
        "names have up to {MAX_NAME} letters, digits, `.`, `_` and `-`, and start with a letter or digit"
    )))
}

/// Reads the name of an interface, as the kernel takes them (`dev_valid_name` in net/core/dev.c).
pub fn parse_interface(text: &str) -> Result<String, Refusal> {
    let is_valid = !text.is_empty()
        && text.len() <= MAX_INTERFACE
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if is_valid {
        Ok(text.to_owned())
    } else {
        Err(Refusal::new(format!("{text:?} is no interface")).help(format!(
            "the names of interfaces have 1 to {MAX_INTERFACE} bytes without spaces, slashes and colons, such as eth0"
        )))
    }
}

/// Reads the path of a cgroup; the slashes at its ends are left away.
pub fn parse_cgroup(text: &str) -> Result<String, Refusal> {
    if let Some(below) = text.strip_prefix(CGROUP_ROOT)
        && (below.is_empty() || below.starts_with('/'))
    {
        let below = below.trim_matches('/');
        let below = if below.is_empty() { "/" } else { below };
        return Err(
            Refusal::new(format!("{text} is a path from the root of the file system"))
                .help(format!("write it from the root of cgroup v2: {below}")),
        );
    }
    if text == "/" {
        return Ok(text.to_owned());
    }
    let path = text.trim_matches('/');
    let is_valid = !path.is_empty()
        && path.len() <= MAX_CGROUP
        && !path.contains(|c: char| c.is_control())
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
    if is_valid {
        Ok(path.to_owned())
    } else {
        Err(Refusal::new(format!("{text:?} is no path of a cgroup"))
            .help("write a path below the root of cgroup v2, such as system.slice/nginx.service, or / for the root"))
    }
}

/// The one of `candidates` that a misspelt `text` is nearest to, if any is near.
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| {
            let normal = candidate.replace('-', "_");
            let distance = strsim::damerau_levenshtein(&text, &normal);
            // `port` for `destination_ports`: a part is nearer than its letters are.
            let is_part = text.len() >= 4 && (normal.contains(&text) || text.contains(&normal));
            (if is_part { distance.min(2) } else { distance }, candidate)
        })
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

// What serde calls, by which the types of the model are written and read without diagnostics.

pub(crate) fn yes() -> bool {
    true
}

pub(crate) fn default_priority() -> u32 {
    DEFAULT_PRIORITY
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn is_default_priority(priority: &u32) -> bool {
    *priority == DEFAULT_PRIORITY
}

pub(crate) fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        1 => Ok(1),
        other => Err(D::Error::custom(format!("version {other} is not known; write 1"))),
    }
}

pub(crate) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    parse_name(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// A value that is written as text.
trait Text: Sized {
    fn write(&self) -> String;
    fn read(text: &str) -> Result<Self, Refusal>;
}

impl Text for Prefix {
    fn write(&self) -> String {
        prefix(self)
    }

    fn read(text: &str) -> Result<Self, Refusal> {
        parse_prefix(text)
    }
}

impl Text for Mac {
    fn write(&self) -> String {
        mac(self)
    }

    fn read(text: &str) -> Result<Self, Refusal> {
        parse_mac(text)
    }
}

/// [`Text`] as serde wants it.
struct AsText<T>(T);

impl<T: Text> Serialize for AsText<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.write())
    }
}

impl<'de, T: Text> Deserialize<'de> for AsText<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(&String::deserialize(deserializer)?)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

pub(crate) fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Prefix>, D::Error> {
    let list: Vec<AsText<Prefix>> = Vec::deserialize(deserializer)?;
    Ok(list.into_iter().map(|AsText(prefix)| prefix).collect())
}

/// A set has one of its keys at least, also when it is empty.
impl Serialize for Set {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.prefixes.is_empty() || self.file.is_none() {
            let prefixes: Vec<AsText<Prefix>> = self.prefixes.iter().copied().map(AsText).collect();
            map.serialize_entry("prefixes", &prefixes)?;
        }
        if let Some(file) = &self.file {
            map.serialize_entry("file", file)?;
        }
        map.end()
    }
}

pub(crate) mod macs {
    use super::{AsText, Deserializer, Mac, Serializer, one_or_many};

    pub fn serialize<S: Serializer>(list: &[Mac], serializer: S) -> Result<S::Ok, S::Error> {
        let list: Vec<AsText<Mac>> = list.iter().copied().map(AsText).collect();
        one_or_many::serialize(&list, serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Mac>, D::Error> {
        let list: Vec<AsText<Mac>> = one_or_many::deserialize(deserializer)?;
        Ok(list.into_iter().map(|AsText(mac)| mac).collect())
    }
}

/// A list that may be written without brackets if it has one element, and cannot be empty.
pub(crate) mod one_or_many {
    use super::{Deserialize, DeserializeOwned, Deserializer, OneOrMany, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        match list {
            [one] => one.serialize(serializer),
            many => serializer.collect_seq(many),
        }
    }

    pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
        match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(one) => Ok(vec![one]),
            OneOrMany::Many(many) if many.is_empty() => Err(serde::de::Error::custom(
                "an empty list matches nothing; leave the key out for anything",
            )),
            OneOrMany::Many(many) => Ok(many),
        }
    }
}

/// One value, or a list of some.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    /// One.
    One(T),
    /// A list.
    Many(#[schemars(length(min = 1))] Vec<T>),
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_address(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.name() {
            Some(name) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0),
        }
    }
}

/// Reads a number, or the text that `parse` takes.
struct NumberOr<T, N, P>(N, P, std::marker::PhantomData<T>);

impl<T, N: Fn(i128) -> Result<T, Refusal>, P: Fn(&str) -> Result<T, Refusal>> Visitor<'_> for NumberOr<T, N, P> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a text")
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.0(number.into()).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.0(number.into()).map_err(E::custom)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        self.1(text).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOr(protocol_number, parse_protocol, std::marker::PhantomData))
    }
}

impl<T: Number + Serialize> Serialize for Range<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            self.first.serialize(serializer)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de, T: Number> Deserialize<'de> for Range<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let single = |digits| number(digits).map(Range::single);
        deserializer.deserialize_any(NumberOr(single, parse_range, std::marker::PhantomData))
    }
}

/// A rate, the burst above it, and who shares them. One of `packets` and `bytes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RateLimit", extend("oneOf" = [{"required": ["packets"]}, {"required": ["bytes"]}]))]
pub(crate) struct RateLimitText {
    /// Packets a second: `10000/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+/s$"))]
    packets: Option<String>,
    /// Bytes a second from the IP header on: `1250000/s`, or in bits `500kbit`, `10mbit`, `1gbit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(/s|[kKmMgG][bB][iI][tT])$"))]
    bytes: Option<String>,
    /// How many packets or bytes may come at once. What comes in a tenth of a second if it is not there, and at least
    /// 10 packets or 65,536 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_099_511_627_776_u64))]
    burst: Option<u64>,
    /// Who shares a bucket.
    #[serde(default)]
    per: Per,
}

impl TryFrom<RateLimitText> for crate::model::RateLimit {
    type Error = Refusal;

    fn try_from(text: RateLimitText) -> Result<Self, Refusal> {
        let rate = match (text.packets, text.bytes) {
            (Some(packets), None) => Rate::Packets(parse_packets(&packets)?),
            (None, Some(bytes)) => Rate::Bytes(parse_bytes(&bytes)?),
            _ => return Err(one_rate()),
        };
        Ok(Self {
            rate,
            burst: match text.burst {
                Some(number) => burst(number.into())?,
                None => rate.default_burst(),
            },
            per: text.per,
        })
    }
}

/// What a rate limit without a rate, or with two, is told.
pub fn one_rate() -> Refusal {
    Refusal::new("a rate limit has a rate of packets or of bytes, one of them")
        .help("write { packets: 10000/s } or { bytes: 10mbit }")
}

impl From<crate::model::RateLimit> for RateLimitText {
    fn from(limit: crate::model::RateLimit) -> Self {
        let (packets, bytes) = match limit.rate {
            Rate::Packets(rate) => (Some(format!("{rate}/s")), None),
            Rate::Bytes(rate) => (None, Some(format!("{rate}/s"))),
        };
        Self {
            packets,
            bytes,
            burst: (limit.burst != limit.rate.default_burst()).then_some(limit.burst),
            per: limit.per,
        }
    }
}

/// Schemas of what is written as text, for editors: nearer than "a string", and no second parser.
macro_rules! text_schemas {
    ($($(#[doc = $doc:literal])+ $name:ident = $schema:tt;)+) => {$(
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).trim_end_matches("Schema").into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut schema = schemars::json_schema!($schema);
                schema.insert("description".into(), concat!($($doc),+).trim().into());
                schema
            }
        }
    )+};
}

text_schemas! {
    /// Letters, digits, `.`, `_` and `-`, and a letter or digit first.
    NameSchema = { "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$" };
    /// An IPv4 or IPv6 address or prefix, such as 203.0.113.0/24 or 2001:db8::/32.
    PrefixSchema = { "type": "string", "pattern": "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$" };
    /// A port from 1 to 65535, or a range such as 8000-8999.
    PortSchema = {
        "anyOf": [
            { "type": "integer", "minimum": 1, "maximum": 65535 },
            { "type": "string", "pattern": "^[0-9]{1,5}( *- *[0-9]{1,5})?$" }
        ]
    };
    /// A number from 0 to 255, or a range such as 133-137.
    ByteSchema = {
        "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 255 },
            { "type": "string", "pattern": "^[0-9]{1,3}( *- *[0-9]{1,3})?$" }
        ]
    };
    /// A number of a user or group, or a range such as 2000-2999.
    IdSchema = {
        "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 4_294_967_294_u32 },
            { "type": "string", "pattern": "^[0-9]{1,10}( *- *[0-9]{1,10})?$" }
        ]
    };
    /// The name of an interface, such as eth0.
    InterfaceSchema = { "type": "string", "pattern": "^[^/:\\s]{1,15}$" };
    /// A MAC address, such as 02:00:00:00:00:01.
    MacSchema = { "type": "string", "pattern": "^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$" };
    /// A path below the root of cgroup v2, such as system.slice/nginx.service; `/` is the root.
    CgroupSchema = { "type": "string", "minLength": 1 };
}

impl JsonSchema for Protocol {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Protocol".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "tcp, udp, icmp, icmpv6, or a protocol's number.",
            "anyOf": [
                { "enum": ["tcp", "udp", "icmp", "icmpv6"] },
                { "type": "integer", "minimum": 0, "maximum": 255 },
                { "type": "string", "pattern": "^[0-9]{1,3}$" }
            ]
        })
    }
}

impl JsonSchema for Address {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A prefix, an address, or \"@name\" for a set.",
            "type": "string",
            "pattern": "^(@[A-Za-z0-9][A-Za-z0-9._-]{0,63}|[0-9A-Fa-f:.]+(/[0-9]{1,3})?)$"
        })
    }
}
