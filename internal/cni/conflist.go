// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// NetworkName is the name of the network in our conflist. By it we know a
// conflist as ours.
const NetworkName = "meshd"

// cniVersion is the highest that Debian's containernetworking-plugins 1.1.1
// speak.
const cniVersion = "1.0.0"

// Config says what the host's container network is to be.
type Config struct {
	ConfDir      string         // where containerd looks for conflists
	BinDir       string         // where containerd looks for plugins
	PluginSource string         // where the distribution has its plugins
	Bridge       string         // name of the bridge that the pods hang on
	PodCIDRs     []netip.Prefix // one a family; the first family is the pods' primary one
	MTU          int            // of the bridge and the pods, bytes: the WireGuard device's
}

// The conflist, as in the CNI specification 1.0.0, section 1. Each plugin's keys
// are in its manual at https://www.cni.dev/plugins/current/.
type (
	conflist struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Plugins    [2]any `json:"plugins"`
	}

	bridgePlugin struct {
		Type             string `json:"type"`
		Bridge           string `json:"bridge"`
		IsDefaultGateway bool   `json:"isDefaultGateway"`
		ForceAddress     bool   `json:"forceAddress"`
		HairpinMode      bool   `json:"hairpinMode"`
		MTU              int    `json:"mtu"`
		IPAM             ipam   `json:"ipam"`
	}

	ipam struct {
		Type   string       `json:"type"`
		Ranges [][]ipamPool `json:"ranges"`
	}

	ipamPool struct {
		Subnet netip.Prefix `json:"subnet"`
	}

	portmapPlugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
		SNAT         bool            `json:"snat"`
	}
)

// Render returns the conflist for c: indented JSON with a last newline, always
// the same bytes for the same c.
//
// There is no ipMasq in it. What leaves the mesh is masqueraded by meshd's own
// nft table, which knows where the mesh ends; the plugin does not, and would
// hide the pods' addresses from each other across nodes.
func Render(c Config) ([]byte, error) {
	ranges, err := ranges(c.PodCIDRs)
	if err != nil {
		return nil, fmt.Errorf("render conflist: %w", err)
	}
	list := conflist{CNIVersion: cniVersion, Name: NetworkName, Plugins: [2]any{
		bridgePlugin{
			Type:   "bridge",
			Bridge: c.Bridge,
			// The bridge has the first address of each range, and the pods
			// their default routes through it.
			IsDefaultGateway: true,
			// After a renumbering, the bridge still has its old address. Without
			// this, the plugin refuses to make pods until the bridge is deleted.
			ForceAddress: true,
			// A pod may reach itself through its own Service.
			HairpinMode: true,
			MTU:         c.MTU,
			IPAM:        ipam{Type: "host-local", Ranges: ranges},
		},
		portmapPlugin{
			Type:         "portmap",
			Capabilities: map[string]bool{"portMappings": true},
			// Masquerades what this node's own pods and processes send to a
			// host port, else the answer would take another way back. Other
			// sources reach the pod unchanged.
			SNAT: true,
		},
	}}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render conflist: %w", err)
	}
	return append(data, '\n'), nil
}

// ranges returns a set of one range for each prefix: host-local gives a pod one
// address of each set.
func ranges(cidrs []netip.Prefix) ([][]ipamPool, error) {
	if len(cidrs) == 0 {
		return nil, errors.New("no pod CIDR")
	}
	var sets [][]ipamPool
	families := map[bool]netip.Prefix{}
	for _, p := range cidrs {
		if !p.IsValid() || p != p.Masked() {
			return nil, fmt.Errorf("pod CIDR %s: not a network", p)
		}
		// The network's own address, the gateway's and the last one are taken.
		if p.Bits() > p.Addr().BitLen()-2 {
			return nil, fmt.Errorf("pod CIDR %s: no room for a pod", p)
		}
		if other, ok := families[p.Addr().Is4()]; ok {
			return nil, fmt.Errorf("pod CIDRs %s and %s: want one a family", other, p)
		}
		families[p.Addr().Is4()] = p
		sets = append(sets, []ipamPool{{Subnet: p}})
	}
	return sets, nil
}

// networkName returns the name of the network that a configuration is for.
func networkName(conflist []byte) (string, error) {
	var list struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(conflist, &list); err != nil {
		return "", fmt.Errorf("parse conflist: %w", err)
	}
	return list.Name, nil
}
