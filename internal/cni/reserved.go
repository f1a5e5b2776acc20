// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
)

// StoreDir is where host-local keeps which addresses of our network pods have: a file for
// each, named after the address. It is the plugin's default (dataDir) and the network's
// name, see https://www.cni.dev/plugins/current/ipam/host-local/.
const StoreDir = "/var/lib/cni/networks/" + NetworkName

// Reserved returns the addresses within the pod CIDRs that pods have, as the store in dir
// says. It has none on a host that never ran a pod.
func Reserved(dir string, podCIDRs []netip.Prefix) ([]netip.Addr, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read host-local's store: %w", err)
	}
	var reserved []netip.Addr
	for _, e := range entries {
		a, err := netip.ParseAddr(e.Name()) // beside addresses there are a lock and what was given out last
		if err == nil && slices.ContainsFunc(podCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			reserved = append(reserved, a)
		}
	}
	return reserved, nil
}
