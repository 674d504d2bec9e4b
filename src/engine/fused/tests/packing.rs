//! What is packed, byte for byte: packs on disk outlive the code that made them.

use super::super::packed;
use super::network::Recipe;
use crate::kernels::Tier;

#[test]
fn packed_bytes_are_those_of_this_version_of_the_rules() {
    let network = Recipe::odd().network();
    let packs = Tier::ALL.into_iter().filter(|&tier| tier != Tier::Reference).map(|tier| {
        let (packing, memory) = packed(&network, tier).unwrap();
        format!("{tier} {} {}", packing.form, crate::store::sha256(memory.bytes()))
    });
    let expected = [
        "amx bf16-tiles 795c9f731b7e0634c681987596d585a4fde0a5d697eb4d8a8775c70d8f3f28b6",
        "avx512bf16 bf16-pairs e04f4d98db250b271d4733bd892edc2de7727c642e9cb9c4a84cf1f211f85cef",
        "avx512 f32-winograd ba5197475221c6c403204a361cb7040dabd956d5187dd059db2323a7109d5cbb",
        "avx2 f32-winograd ba5197475221c6c403204a361cb7040dabd956d5187dd059db2323a7109d5cbb",
        "portable f32-winograd ba5197475221c6c403204a361cb7040dabd956d5187dd059db2323a7109d5cbb",
    ];
    assert_eq!(
        packs.collect::<Vec<_>>(),
        expected,
        "other bytes than before: raise PACKING_VERSION, then put the new digests here"
    );
}
