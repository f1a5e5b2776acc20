// SPDX-License-Identifier: Apache-2.0

package host

import (
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TestIsRelevant has events about what changes all the time on a relay, and about our firewall.
func TestIsRelevant(t *testing.T) {
	const tables = unix.NFNL_SUBSYS_NFTABLES << 8
	tests := []struct {
		name   string
		kind   int
		family byte
		want   bool
	}{
		{"a session of a relay", tables | unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_NETDEV, false},
		{"the number of a change", tables | unix.NFT_MSG_NEWGEN, unix.NFPROTO_UNSPEC, false},
		{"our table", tables | unix.NFT_MSG_DELTABLE, unix.NFPROTO_INET, true},
		{"docker's rules", tables | unix.NFT_MSG_NEWRULE, unix.NFPROTO_IPV4, true},
		{"a neighbour", unix.RTM_NEWNEIGH, unix.AF_INET, false},
		{"a route", unix.RTM_NEWROUTE, unix.AF_INET, true},
	}
	k := &Kernel{}
	k.vxlanIndex.Store(7)
	for _, tt := range tests {
		event := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(tt.kind)}, Data: make([]byte, unix.SizeofNdMsg)}
		event.Data[0] = tt.family
		if got := k.isRelevant(event); got != tt.want {
			t.Errorf("%s: got %t, want %t", tt.name, got, tt.want)
		}
	}
}
