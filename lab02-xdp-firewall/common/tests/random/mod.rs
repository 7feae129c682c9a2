//! Random frames and random rules that meet: few addresses, ports and identifications, so that most frames hit
//! something. The same seed gives the same ones.

pub mod frames;
pub mod rules;

/// A reproducible stream of numbers (splitmix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() >> 16) as usize % bound
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn some_of<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

/// Ports that frames have and rules name.
const PORTS: [u16; 10] = [0, 22, 53, 80, 443, 5000, 5001, 5999, 40_000, 65_535];

/// Senders.
fn mac(dice: &mut Dice) -> [u8; 6] {
    [2, 0, 0, 0, 0, dice.below(6) as u8]
}

fn ipv4(dice: &mut Dice) -> [u8; 4] {
    match dice.below(10) {
        0 => (dice.number() as u32).to_be_bytes(),
        1 => dice.one_of(&[[0; 4], [255; 4], [127, 0, 0, 1]]),
        2..5 => [198, 51, dice.below(256) as u8, dice.below(3) as u8],
        _ => [192, 0, 2, dice.below(8) as u8],
    }
}

fn ipv6(dice: &mut Dice) -> [u8; 16] {
    let [a, b, c, d] = ipv4(dice);
    match dice.below(10) {
        0 => {
            let mut address = [0; 16];
            address[..8].copy_from_slice(&dice.number().to_be_bytes());
            address[8..].copy_from_slice(&dice.number().to_be_bytes());
            address
        }
        1 => dice.one_of(&[[0; 16], [255; 16]]),
        // Mapped, compatible, and with the octets of IPv4 in front: none of them is an IPv4 address.
        2 => [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
        3 => [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        _ => [0x20, 1, 0xd, 0xb8, 0, 0, 0, b & 3, 0, 0, 0, 0, 0, 0, 0, d],
    }
}
