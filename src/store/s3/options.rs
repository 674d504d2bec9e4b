//! How a bucket is reached; credentials are none of it.

/// When checksums of S3's newer kind are asked for and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Checksums {
    /// Wherever the operation knows them: what AWS has done since 2025.
    WhenSupported,
    /// Only where the operation cannot do without: for servers that do not know them.
    WhenRequired,
}

/// What is said about S3 besides names. What is not said here, the standard variables
/// (`AWS_ENDPOINT_URL_S3`, `AWS_REGION`, `AWS_PROFILE`, ...) and files of AWS say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct S3Options {
    /// Another server than AWS.
    pub endpoint_url: Option<String>,
    /// The region, if no variable or profile is to say it.
    pub region: Option<String>,
    /// The bucket in the path and not in the host name; by default where the server is not AWS.
    pub path_style: Option<bool>,
    /// Checksums; by default as the environment says, else [`Checksums::WhenSupported`].
    pub checksums: Option<Checksums>,
    /// Sign nothing: for public buckets.
    pub unsigned: bool,
    /// Whoever asks pays.
    pub request_payer: bool,
    /// How the server is to encrypt what is written: `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub sse: Option<String>,
    /// With which key of KMS.
    pub sse_kms_key_id: Option<String>,
}
