//! A module as an image, and an image as a module.
//!
//! Written is the *compat* variant of the Wasm image specification (github.com/solo-io/wasm, spec/spec-compat.md) with OCI's media types: one
//! tar+gzip layer that holds `plugin.wasm`. Istio (pkg/wasm/imagefetcher.go) and Envoy Gateway (internal/wasm/imagefetcher.go) both pull it, and to
//! every other tool it is an ordinary image. Of the same module it is always the same, byte for byte, so its digest can be told without a registry.
//!
//! Read are also Docker's media types for the same, and artifacts with a bare `.wasm` layer.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use portcullis_module::Description;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::digest::{digest, is_digest};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Of the specification's *oci* variant, and of the CNCF's Wasm artifacts.
const WASM_LAYERS: &[&str] = &[
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/wasm",
];
/// The file in the layer (spec-compat.md).
const FILE: &str = "plugin.wasm";

/// Images of an index that a message lists.
const LISTED_MAX: usize = 3;

/// What a layer may be larger by than the module in it: headers of tar and gzip.
const PACKING_BYTES_MAX: u64 = 1 << 20;

/// One blob of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    media_type: String,
    /// `sha256:` and hex.
    digest: String,
    size: u64,
}

/// A manifest, as far as it is looked at.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// An image of one module, ready to be pushed.
#[derive(Debug)]
pub(crate) struct Image {
    /// The layer and the image's configuration, each with its digest (hex).
    pub(super) blobs: Vec<(String, Vec<u8>)>,
    pub(super) manifest: Vec<u8>,
    /// Of the manifest: what pins the image.
    pub(crate) digest: String,
}

impl Descriptor {
    fn new(media_type: &str, digest: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{digest}"),
            size: bytes.len() as u64,
        }
    }

    /// Hex.
    pub(super) fn sha256(&self) -> Result<&str, String> {
        let hex = self.digest.strip_prefix("sha256:");
        hex.filter(|hex| is_digest(hex))
            .ok_or_else(|| "its manifest names a blob by something else than SHA-256".to_owned())
    }

    /// In bytes, as the manifest says.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

impl Image {
    /// Packs a module; what it says of itself becomes annotations.
    pub(crate) fn of(module: &[u8], description: Option<&Description>) -> std::io::Result<Self> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(module.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        tar.append_data(&mut header, FILE, module)?;
        let unpacked = tar.into_inner()?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(&unpacked)?;
        let layer = gzip.finish()?;
        // By Go's names, as the image spec asks; nobody runs it as a container.
        let config = json!({
            "architecture": "wasm",
            "os": "wasip1",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&unpacked))]},
        });
        let config = config.to_string().into_bytes();
        let (layer_digest, config_digest) = (digest(&layer), digest(&config));
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.into()),
            config: Descriptor::new(CONFIG, &config_digest, &config),
            layers: vec![Descriptor::new(LAYER, &layer_digest, &layer)],
            annotations: description.map(annotations).unwrap_or_default(),
        };
        let manifest = serde_json::to_vec(&manifest)?;
        Ok(Self {
            digest: digest(&manifest),
            blobs: vec![(layer_digest, layer), (config_digest, config)],
            manifest,
        })
    }
}

/// By the keys of OCI's image spec.
fn annotations(description: &Description) -> BTreeMap<String, String> {
    let known = [
        ("title", &description.name),
        ("version", &description.version),
        ("description", &description.summary),
    ];
    let known = known.into_iter().filter(|(_, value)| !value.is_empty());
    known
        .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value.clone()))
        .collect()
}

/// The image of a module in an index of several: the only one for Wasm or, if none says that it is, the only one there is. Nothing where it is no index.
///
/// Docker's builder pushes an index of one image and of an attestation that tells how it was built; that is for no platform.
pub(super) fn in_index(manifest: &[u8]) -> Result<Option<Descriptor>, String> {
    #[derive(Deserialize)]
    struct Kinds {
        manifests: Option<IgnoredAny>,
        layers: Option<IgnoredAny>,
    }
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        platform: Option<Platform>,
        #[serde(flatten)]
        descriptor: Descriptor,
    }
    #[derive(Deserialize)]
    struct Platform {
        #[serde(default)]
        architecture: String,
    }
    match serde_json::from_slice(manifest) {
        Ok(Kinds {
            manifests: Some(_),
            layers: None,
        }) => {}
        // Whoever reads it may take it for either (CVE-2021-41190).
        Ok(Kinds {
            manifests: Some(_),
            layers: Some(_),
        }) => return Err("its manifest is of an image and of an index of images at once".into()),
        Ok(_) => return Ok(None),
        Err(error) => return Err(format!("its manifest is none of an image: {error}")),
    }
    let Index { manifests } = serde_json::from_slice(manifest)
        .map_err(|error| format!("its manifest is none of an index: {error}"))?;
    let architecture = |it: &&Listed| {
        let platform = it.platform.as_ref();
        platform
            .map_or("", |it| it.architecture.as_str())
            .to_owned()
    };
    let images: Vec<_> = manifests
        .iter()
        .filter(|it| architecture(it) != "unknown")
        .collect();
    let wasm: Vec<_> = images
        .iter()
        .copied()
        .filter(|it| architecture(it).starts_with("wasm"))
        .collect();
    match (&*images, &*wasm) {
        ([only], _) | (_, [only]) => {
            only.descriptor.sha256()?;
            Ok(Some(only.descriptor.clone()))
        }
        (all, wasm) => {
            let listed = all.iter().map(|it| {
                let Descriptor { digest, .. } = &it.descriptor;
                format!("{} {digest}", architecture(it))
            });
            let listed: Vec<_> = listed.take(LISTED_MAX).collect();
            Err(format!(
                "it is an index of {} images, {} of them for Wasm: name the digest of one of them [{}]",
                all.len(),
                wasm.len(),
                shortened(&listed.join(", "))
            ))
        }
    }
}

/// What an index names must be an image.
pub(super) fn no_index(manifest: &[u8]) -> Result<(), String> {
    match in_index(manifest)? {
        None => Ok(()),
        Some(_) => Err("it is an index in an index: name the digest of its image".into()),
    }
}

/// The layer that has the module, of a manifest whose digest is as it should be.
pub(super) fn module_layer(manifest: &[u8], module_bytes_max: u64) -> Result<Descriptor, String> {
    let manifest: Manifest = serde_json::from_slice(manifest)
        .map_err(|error| format!("its manifest is none of an image: {error}"))?;
    // The last layer is the whole file system's newest state; Istio and Envoy Gateway take it likewise.
    let packed = manifest.layers.last().filter(|it| is_packed(it));
    let is_bare = |it: &&Descriptor| WASM_LAYERS.contains(&it.media_type.as_str());
    let layer = packed.or_else(|| manifest.layers.iter().find(is_bare));
    let Some(layer) = layer else {
        let found: Vec<_> = manifest.layers.iter().map(|it| &*it.media_type).collect();
        let found = found.join(", ");
        return Err(format!(
            "it is no image of a module: its layers are [{}], expected {LAYER} with {FILE} in it, or {}",
            shortened(&found),
            WASM_LAYERS.join(" or ")
        ));
    };
    if layer.size > module_bytes_max.saturating_add(PACKING_BYTES_MAX) {
        return Err(format!(
            "its layer has {} bytes, a module may have {module_bytes_max}",
            layer.size
        ));
    }
    layer.sha256()?;
    Ok(layer.clone())
}

fn is_packed(layer: &Descriptor) -> bool {
    [LAYER, DOCKER_LAYER].contains(&layer.media_type.as_str())
}

/// For messages.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The module in a layer; never more than `module_bytes_max` of it, whatever it unpacks to.
pub(super) fn module_in(
    descriptor: &Descriptor,
    layer: Vec<u8>,
    module_bytes_max: u64,
) -> Result<Vec<u8>, String> {
    let too_large = || format!("its module is larger than {module_bytes_max} bytes");
    if !is_packed(descriptor) {
        if layer.len() as u64 > module_bytes_max {
            return Err(too_large());
        }
        return Ok(layer);
    }
    let broken = |error: std::io::Error| format!("its layer is no tar+gzip: {error}");
    let unpacked_max = module_bytes_max.saturating_add(PACKING_BYTES_MAX);
    let unpacked = GzDecoder::new(&*layer).take(unpacked_max);
    let mut archive = tar::Archive::new(unpacked);
    for entry in archive.entries().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let is_module = entry
            .path()
            .is_ok_and(|path| path.file_name().is_some_and(|name| name == FILE));
        if !is_module {
            continue;
        }
        if entry.size() > module_bytes_max {
            return Err(too_large());
        }
        let expected = entry.size();
        let mut module = Vec::new();
        let mut entry = entry.take(module_bytes_max);
        entry.read_to_end(&mut module).map_err(broken)?;
        if module.len() as u64 != expected {
            return Err(format!("{FILE} is cut short in its layer"));
        }
        return Ok(module);
    }
    Err(format!("its layer has no {FILE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &[u8] = b"\0asm\x01\0\0\0";

    fn image() -> Image {
        let mut description = Description::default();
        description.name = "body-gate".into();
        description.version = "1.2.3".into();
        Image::of(MODULE, Some(&description)).unwrap()
    }

    fn unpack(media_type: &str, layer: &[u8], max: u64) -> Result<Vec<u8>, String> {
        let descriptor = Descriptor::new(media_type, &digest(layer), layer);
        module_in(&descriptor, layer.to_vec(), max)
    }

    fn packed(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
        for (name, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn an_image_is_the_same_every_time_and_says_what_it_is() {
        let image = image();
        assert_eq!(image.digest, self::image().digest);
        let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        assert_eq!(manifest["mediaType"], MANIFEST);
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
        assert_eq!(
            manifest["annotations"],
            json!({"org.opencontainers.image.title": "body-gate", "org.opencontainers.image.version": "1.2.3"})
        );
        let layer = module_layer(&image.manifest, 1 << 20).unwrap();
        let (sha256, bytes) = &image.blobs[0];
        assert_eq!(layer.sha256().unwrap(), sha256);
        assert_eq!(layer.size(), bytes.len() as u64);
        assert_eq!(module_in(&layer, bytes.clone(), 8).unwrap(), MODULE);
        // The configuration names the layer as it is unpacked.
        let mut tar = Vec::new();
        GzDecoder::new(&**bytes).read_to_end(&mut tar).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&image.blobs[1].1).unwrap();
        let diff = format!("sha256:{}", digest(&tar));
        assert_eq!(config["rootfs"]["diff_ids"], json!([diff]));
    }

    #[test]
    fn other_layouts_are_read() {
        let other = packed(&[("etc/x", b"no"), ("./plugin.wasm", MODULE)]);
        assert_eq!(unpack(DOCKER_LAYER, &other, 8).unwrap(), MODULE);
        for media_type in WASM_LAYERS {
            assert_eq!(unpack(media_type, MODULE, 8).unwrap(), MODULE);
        }
        let size =
            json!({"mediaType": CONFIG, "digest": format!("sha256:{}", digest(b"")), "size": 0});
        let bare = json!({"mediaType": WASM_LAYERS[0], "digest": format!("sha256:{}", digest(MODULE)), "size": 8});
        let manifest = json!({"schemaVersion": 2, "config": size, "layers": [size, bare]});
        let layer = module_layer(manifest.to_string().as_bytes(), 8).unwrap();
        assert_eq!(layer.sha256().unwrap(), digest(MODULE));
    }

    #[test]
    fn what_is_no_module_or_too_large_is_refused() {
        let bomb = packed(&[("a", &vec![0; 3 << 20]), (FILE, MODULE)]);
        assert!(bomb.len() < 10_000);
        let large = packed(&[(FILE, &[0; 9])]);
        let whole = packed(&[(FILE, MODULE)]);
        let rows: &[(&str, &[u8], &str)] = &[
            (LAYER, b"x", "no tar+gzip"),
            (LAYER, &[], "no tar+gzip"),
            (LAYER, &packed(&[("x", MODULE)]), "has no plugin.wasm"),
            (LAYER, &large, "larger than 8 bytes"),
            // Unpacking stops at the bound, within the first file.
            (LAYER, &bomb, "its layer"),
            (LAYER, &whole[..whole.len() / 2], "its layer"),
            (WASM_LAYERS[0], &[0; 9], "larger than 8 bytes"),
        ];
        for (media_type, layer, words) in rows {
            let reason = unpack(media_type, layer, 8).expect_err(words);
            assert!(reason.contains(words), "{words}: {reason}");
        }
        let blob = |media_type: &str, digest: &str, size: u64| json!({"mediaType": media_type, "digest": digest, "size": size});
        let good = format!("sha256:{}", digest(MODULE));
        let manifest = |layers: serde_json::Value| {
            json!({"schemaVersion": 2, "config": blob(CONFIG, &good, 0), "layers": layers})
                .to_string()
        };
        for (manifest, words) in [
            ("x".to_owned(), "none of an image"),
            ("{}".to_owned(), "none of an image"),
            (
                json!({"schemaVersion": 2, "manifests": []}).to_string(),
                "none of an image",
            ),
            (manifest(json!([])), "no image of a module"),
            (
                manifest(json!([blob("text/html", &good, 1)])),
                "no image of a module",
            ),
            (
                manifest(json!([blob(LAYER, "md5:12", 1)])),
                "something else than SHA-256",
            ),
            (
                manifest(json!([blob(LAYER, &good, 1 << 40)])),
                "a module may have",
            ),
        ] {
            let reason = module_layer(manifest.as_bytes(), 8).expect_err(words);
            assert!(reason.contains(words), "{words}: {reason}");
        }
    }

    #[test]
    fn of_an_index_the_one_for_wasm_is_taken() {
        let listed = |digit: char, architecture: &str| {
            let digest = format!("sha256:{}", String::from(digit).repeat(64));
            let platform = json!({"architecture": architecture, "os": "x"});
            json!({"mediaType": MANIFEST, "digest": digest, "size": 7, "platform": platform})
        };
        let index = |manifests: serde_json::Value| {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
            in_index(index.to_string().as_bytes())
        };
        let taken = |manifests: serde_json::Value| {
            let found = index(manifests).unwrap().unwrap();
            found.sha256().unwrap().chars().next().unwrap()
        };
        let (wasm, amd64) = (listed('a', "wasm"), listed('b', "amd64"));
        let attestation = listed('c', "unknown");
        assert_eq!(taken(json!([amd64, wasm, attestation])), 'a');
        assert_eq!(taken(json!([attestation, amd64])), 'b');
        assert_eq!(taken(json!([listed('d', "wasm32")])), 'd');
        let mut bare = wasm.clone();
        bare.as_object_mut().unwrap().remove("platform");
        assert_eq!(taken(json!([bare])), 'a');
        assert!(in_index(&image().manifest).unwrap().is_none());
        for twice in [
            "no JSON",
            r#"{"manifests": [], "manifests": [], "layers": []}"#,
        ] {
            let reason = in_index(twice.as_bytes()).expect_err(twice);
            assert!(reason.contains("none of an image"), "{reason}");
        }
        let mut weak = wasm.clone();
        weak["digest"] = "md5:12".into();
        for (manifests, words) in [
            (json!([]), "an index of 0 images, 0 of them for Wasm"),
            (json!([attestation]), "an index of 0 images"),
            (
                json!([wasm, listed('d', "wasm")]),
                "2 images, 2 of them for Wasm",
            ),
            (
                json!([amd64, listed('d', "arm64")]),
                "2 images, 0 of them for Wasm",
            ),
            (json!([weak]), "something else than SHA-256"),
            (json!([{"digest": 1}]), "none of an index"),
            (json!(7), "none of an index"),
        ] {
            let reason = index(manifests).expect_err(words);
            assert!(reason.contains(words), "{words}: {reason}");
        }
        let inner = json!({"schemaVersion": 2, "manifests": [wasm]}).to_string();
        let reason = no_index(inner.as_bytes()).expect_err("an index");
        assert!(reason.contains("an index in an index"), "{reason}");
        let both = json!({"schemaVersion": 2, "manifests": [wasm], "layers": []});
        let reason = in_index(both.to_string().as_bytes()).expect_err("both");
        assert!(reason.contains("at once"), "{reason}");
    }
}
