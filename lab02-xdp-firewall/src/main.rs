//! x
fn main() {
    let mut e = aya::EbpfLoader::new().load(lab02_xdp_firewall::OBJECT).unwrap();
    let p: &mut aya::programs::Xdp = e.program_mut("firewall").unwrap().try_into().unwrap();
    if let Err(e) = p.load() { println!("{e}"); } else { println!("ok {:?}", p.info().unwrap().verified_instruction_count()); }
}
