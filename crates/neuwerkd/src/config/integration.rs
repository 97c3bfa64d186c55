//! `integration.*`: life in a cloud's instance group.

use super::key::{Part, section};
use super::read::Reader;
use super::value::choice;

section! {
    /// Life in a cloud's instance group.
    Integration, Part::Cloud;

    /// Kind of instance group.
    mode: IntegrationMode = IntegrationMode::None, flag("integration");
    /// Name of the route that points at the nodes.
    route_name: String = "neuwerk-default".into();
    /// Value of the tag that marks instances of this cluster.
    cluster_name: String = "neuwerk".into();
    /// How long a node that leaves may finish its flows.
    drain_timeout_secs: u32 = 300, unit("s"), range(1..=31_536_000);
    /// How often the instance group is looked at.
    reconcile_interval_secs: u32 = 15, unit("s"), range(1..=31_536_000);

    group membership: Membership;
    group aws: Aws;
    group azure: Azure;
    group gcp: Gcp;
}

section! {
    /// What happens to members whose instance is gone.
    Membership, Part::Cloud;

    /// Removes members whose instance was terminated.
    auto_evict_terminating: bool = true;
    /// Removes members that were not heard of for so long; 0: never.
    stale_after_secs: u32 = 0, unit("s");
    /// Never goes below so many voters.
    min_voters: u32 = 3, range(1..=7);
}

section! {
    /// An AWS auto scaling group.
    Aws, Part::Cloud;

    /// Region.
    region: Option<String> = None, flag("aws-region");
    /// Id of the VPC.
    vpc_id: Option<String> = None, flag("aws-vpc-id");
    /// Name of the auto scaling group.
    asg_name: Option<String> = None, flag("aws-asg-name");
}

section! {
    /// An Azure virtual machine scale set.
    Azure, Part::Cloud;

    /// Id of the subscription.
    subscription_id: Option<String> = None, flag("azure-subscription-id");
    /// Resource group.
    resource_group: Option<String> = None, flag("azure-resource-group");
    /// Name of the scale set.
    vmss_name: Option<String> = None, flag("azure-vmss-name");
}

section! {
    /// A Google Cloud managed instance group.
    Gcp, Part::Cloud;

    /// Project.
    project: Option<String> = None, flag("gcp-project");
    /// Region.
    region: Option<String> = None, flag("gcp-region");
    /// Name of the instance group.
    ig_name: Option<String> = None, flag("gcp-ig-name");
}

choice! {
    /// A kind of instance group.
    IntegrationMode {
        /// None.
        None = "none",
        /// AWS auto scaling group.
        AwsAsg = "aws-asg",
        /// Azure virtual machine scale set.
        AzureVmss = "azure-vmss",
        /// Google Cloud managed instance group.
        GcpMig = "gcp-mig",
    }
}

impl Integration {
    pub(super) fn check(&self, reader: &mut Reader) {
        let needed: &[(&str, &Option<String>)] = match self.mode {
            IntegrationMode::None => &[],
            IntegrationMode::AwsAsg => &[
                ("integration.aws.region", &self.aws.region),
                ("integration.aws.vpc_id", &self.aws.vpc_id),
                ("integration.aws.asg_name", &self.aws.asg_name),
            ],
            IntegrationMode::AzureVmss => &[
                (
                    "integration.azure.subscription_id",
                    &self.azure.subscription_id,
                ),
                (
                    "integration.azure.resource_group",
                    &self.azure.resource_group,
                ),
                ("integration.azure.vmss_name", &self.azure.vmss_name),
            ],
            IntegrationMode::GcpMig => &[
                ("integration.gcp.project", &self.gcp.project),
                ("integration.gcp.region", &self.gcp.region),
                ("integration.gcp.ig_name", &self.gcp.ig_name),
            ],
        };
        for (path, value) in needed {
            if value.is_none() && !reader.was_given(path) {
                reader.problem(
                    path,
                    format!("is required by integration.mode {}; set it", self.mode),
                );
            }
        }
    }
}
