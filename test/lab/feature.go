// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// PassOnMerged has the host's link pass on received datagrams merged, if they are not for the host itself:
// the feature rx-udp-gro-forwarding of ethtool(8). A relay then forwards nothing in the kernel.
func (h *Host) PassOnMerged() error {
	return h.Do(func() error {
		if err := enableFeature(HostLink, "rx-udp-gro-forwarding"); err != nil {
			return fmt.Errorf("have link %s of %s pass on datagrams merged: %w", HostLink, h.Name, err)
		}
		return nil
	})
}

// enableFeature sends ETHTOOL_MSG_FEATURES_SET, see Documentation/networking/ethtool-netlink.rst in the kernel's
// source.
func enableFeature(link, feature string) error {
	family, err := netlink.GenlFamilyGet(unix.ETHTOOL_GENL_NAME)
	if err != nil {
		return fmt.Errorf("find ethtool: %w", err)
	}
	header := nl.NewRtAttr(unix.NLA_F_NESTED|unix.ETHTOOL_A_FEATURES_HEADER, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_NAME, nl.ZeroTerminated(link))
	wanted := nl.NewRtAttr(unix.NLA_F_NESTED|unix.ETHTOOL_A_FEATURES_WANTED, nil)
	bit := wanted.AddRtAttr(unix.NLA_F_NESTED|unix.ETHTOOL_A_BITSET_BITS, nil).
		AddRtAttr(unix.NLA_F_NESTED|unix.ETHTOOL_A_BITSET_BITS_BIT, nil)
	bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(feature))
	bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
	request := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	request.AddData(&nl.Genlmsg{Command: unix.ETHTOOL_MSG_FEATURES_SET, Version: unix.ETHTOOL_GENL_VERSION})
	request.AddData(header)
	request.AddData(wanted)
	_, err = request.Execute(unix.NETLINK_GENERIC, 0)
	return err
}
