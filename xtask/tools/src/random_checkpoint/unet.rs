//! The tensors of diffusers' U-Nets.

use super::Tensors;
use super::list::List;

/// A U-Net, described by its sizes.
pub struct UNet<'a> {
    /// Channels of each level.
    pub channels: &'a [usize],
    /// Input and output channels.
    pub image: [usize; 2],
    /// Width of the attention context, if the U-Net has attention.
    pub context: Option<usize>,
    /// Outputs of the timestep projection per channel.
    pub film: usize,
}

impl UNet<'_> {
    /// Returns names and shapes with `layers` residual blocks per level.
    pub fn tensors(&self, layers: usize) -> Tensors {
        let mut list = List::default();
        let (first, n) = (self.channels[0], self.channels.len());
        list.conv("conv_in", self.image[0], first, 3);
        list.linear("time_embedding.linear_1", first, 4 * first);
        list.linear("time_embedding.linear_2", 4 * first, 4 * first);
        for (i, &channels) in self.channels.iter().enumerate() {
            let block = format!("down_blocks.{i}");
            let before = self.channels[i.saturating_sub(1)];
            for j in 0..layers {
                self.resnet(
                    &mut list,
                    &format!("{block}.resnets.{j}"),
                    if j == 0 { before } else { channels },
                    channels,
                );
                if i > 0 {
                    self.attention(&mut list, &format!("{block}.attentions.{j}"), channels);
                }
            }
            if i + 1 < n {
                self.resnet(&mut list, &format!("{block}.downsamplers.0"), channels, channels);
            }
        }
        let deepest = self.channels[n - 1];
        self.resnet(&mut list, "mid_block.resnets.0", deepest, deepest);
        self.attention(&mut list, "mid_block.attentions.0", deepest);
        self.resnet(&mut list, "mid_block.resnets.1", deepest, deepest);
        for i in 0..n {
            let block = format!("up_blocks.{i}");
            let level = n - 1 - i;
            let channels = self.channels[level];
            let before = self.channels[(level + 1).min(n - 1)];
            let outer = self.channels[level.saturating_sub(1)];
            for j in 0..=layers {
                let from = if j == 0 { before } else { channels };
                let skip = if j == layers { outer } else { channels };
                self.resnet(&mut list, &format!("{block}.resnets.{j}"), from + skip, channels);
                if level > 0 {
                    self.attention(&mut list, &format!("{block}.attentions.{j}"), channels);
                }
            }
            if level > 0 {
                self.resnet(&mut list, &format!("{block}.upsamplers.0"), channels, channels);
            }
        }
        list.norm("conv_norm_out", first);
        list.conv("conv_out", first, self.image[1], 3);
        list.0
    }

    fn resnet(&self, list: &mut List, name: &str, from: usize, to: usize) {
        list.norm(&format!("{name}.norm1"), from);
        list.conv(&format!("{name}.conv1"), from, to, 3);
        list.linear(&format!("{name}.time_emb_proj"), 4 * self.channels[0], self.film * to);
        list.norm(&format!("{name}.norm2"), to);
        list.conv(&format!("{name}.conv2"), to, to, 3);
        if from != to {
            list.conv(&format!("{name}.conv_shortcut"), from, to, 1);
        }
    }

    fn attention(&self, list: &mut List, name: &str, channels: usize) {
        let Some(context) = self.context else { return };
        list.norm(&format!("{name}.group_norm"), channels);
        for field in ["to_q", "to_k", "to_v", "to_out.0"] {
            list.linear(&format!("{name}.{field}"), channels, channels);
        }
        for field in ["add_k_proj", "add_v_proj"] {
            list.linear(&format!("{name}.{field}"), context, channels);
        }
    }
}
