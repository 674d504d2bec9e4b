//! What is packed, byte for byte: packs on disk outlive the code that made them.

use super::super::packed;
use super::network::Recipe;
use crate::kernels::Tier;

#[test]
fn packed_bytes_are_those_of_this_version_of_the_rules() {
    let network = Recipe::odd().network();
    for (tier, form, digest) in [
        (
            Tier::Amx,
            "bf16-tiles",
            "afa8014d00077ae9fb5fcb44f88b24b0461b599ab4b875479296fd73491a5fec",
        ),
        (
            Tier::Avx512Bf16,
            "bf16-pairs",
            "cc7e4f4c416a67969a68a154468c1e23208e6b7a9611f8bd9a99000701d9f811",
        ),
        (
            Tier::Avx512,
            "f32-winograd",
            "375c46d162b60a5735cd15d036d73d3464b5951154efceb730f2f6fec601f203",
        ),
        (
            Tier::Avx2,
            "f32-winograd",
            "375c46d162b60a5735cd15d036d73d3464b5951154efceb730f2f6fec601f203",
        ),
        (
            Tier::Portable,
            "f32-plain",
            "649448f1f3cfc9467e557fef0b184df23ada4f4c47736e0b725c08c20cac64c9",
        ),
    ] {
        let (packing, memory) = packed(&network, tier).unwrap();
        assert_eq!(packing.form, form, "{tier}");
        assert_eq!(
            crate::store::sha256(memory.bytes()),
            digest,
            "{tier}: {packing:?}: other bytes than before: raise PACKING_VERSION, then put the new \
             digests here"
        );
    }
}
