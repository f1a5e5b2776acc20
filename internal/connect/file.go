// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// File is a configuration file that meshd client add has printed.
type File struct {
	PrivateKey   wgtypes.Key
	PresharedKey mesh.PresharedKey // zero for none
	Config       control.ClientConfig
}

// granted returns the only networks that this client may ever route into its tunnels:
// the cluster's ranges and each node's allowed IPs, as they are in the file.
func (f File) granted() []netip.Prefix {
	granted := slices.Clone(f.Config.Ranges)
	for _, p := range f.Config.Peers {
		granted = append(granted, p.AllowedIPs...)
	}
	return granted
}

// grantsInternet reports whether the client reaches the internet through its tunnels.
func (f File) grantsInternet() bool { return slices.ContainsFunc(f.granted(), mesh.IsDefaultRoute) }

// Format implements fmt.Formatter, so that the private key is never printed.
func (f File) Format(s fmt.State, _ rune) { fmt.Fprintf(s, "configuration of %v", f.Config.Overlay) }

// ownComment begins comments that hold settings of meshd, which wg-quick(8) ignores.
const ownComment = "# meshd-"

// The keys of these settings.
const (
	keyCluster = "meshd-cluster" // the name of the cluster
	keyRanges  = "meshd-ranges"  // see control.ClientConfig
	keyNode    = "meshd-node"    // fingerprint and overlay address of a peer
)

// errUnverifiable means that a file was made before answers were signed.
var errUnverifiable = errors.New("the file lacks some of meshd's comments, so answers can't be verified; print a new one on a node with meshd client show NAME, and copy the private key, and the preshared key if there is one, from the old one")

// ParseFile parses the part of the wg-quick(8) format that meshd writes. As there, several lines of
// one key with a list are one list. Errors name the line and never contain a secret.
func ParseFile(text string) (File, error) {
	var f File
	number := 0
	for line := range strings.Lines(text) {
		number++
		if own, ok := strings.CutPrefix(line, ownComment); ok {
			line = strings.TrimPrefix(ownComment, "# ") + own
		}
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line == "[Interface]":
		case line == "[Peer]":
			f.Config.Peers = append(f.Config.Peers, control.ClientPeer{Name: fmt.Sprintf("peer %d", len(f.Config.Peers)+1)})
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok {
				return File{}, fmt.Errorf("line %d: want KEY = VALUE", number)
			}
			if err := f.set(strings.TrimSpace(key), strings.TrimSpace(value)); err != nil {
				return File{}, fmt.Errorf("line %d: %w", number, err)
			}
		}
	}
	if f.PrivateKey == (wgtypes.Key{}) {
		return File{}, errors.New("no PrivateKey")
	}
	return f, checkConfig(f.Config)
}

// set sets the value of one line of the file.
func (f *File) set(key, value string) (err error) {
	c := &f.Config
	switch key {
	case "PrivateKey":
		f.PrivateKey, err = parseKey(key, value)
		return err
	case "Address":
		prefixes, err := parsePrefixes(value)
		for _, p := range prefixes {
			c.Overlay = append(c.Overlay, p.Addr())
		}
		return err
	case "DNS":
		c.Search = append(c.Search, strings.Split(strings.ReplaceAll(value, " ", ""), ",")...)
		if c.Resolver == "" {
			c.Resolver, c.Search = c.Search[0], c.Search[1:]
		}
		return nil
	case "ListenPort":
		c.ListenPort, err = parseNumber(key, value)
		return err
	case "MTU":
		c.MTU, err = parseNumber(key, value)
		return err
	case keyCluster:
		c.Cluster = value
		return nil
	case keyRanges:
		prefixes, err := parsePrefixes(value)
		c.Ranges = append(c.Ranges, prefixes...)
		return err
	}
	if len(c.Peers) == 0 {
		return fmt.Errorf("%s is not expected in [Interface]", key)
	}
	return f.setPeer(&c.Peers[len(c.Peers)-1], key, value)
}

func (f *File) setPeer(p *control.ClientPeer, key, value string) error {
	switch key {
	case "PublicKey":
		k, err := parseKey(key, value)
		p.PublicKey = k.String()
		return err
	case "PresharedKey":
		k, err := parseKey(key, value)
		f.PresharedKey, f.Config.PresharedKey = mesh.PresharedKey(k), true
		return err
	case keyNode:
		id, addr, _ := strings.Cut(value, ",")
		var idErr, addrErr error
		p.ID, idErr = mesh.ParseID(id)
		p.Overlay, addrErr = netip.ParseAddr(strings.TrimSpace(addr))
		return errors.Join(idErr, addrErr)
	case "Endpoint":
		p.Endpoint = value
		return nil
	case "AllowedIPs":
		prefixes, err := parsePrefixes(value)
		p.AllowedIPs = append(p.AllowedIPs, prefixes...)
		return err
	case "PersistentKeepalive":
		var err error
		f.Config.Keepalive, err = parseNumber(key, value)
		return err
	}
	return fmt.Errorf("%s is not expected in [Peer]", key)
}

func parseKey(key, value string) (wgtypes.Key, error) {
	k, err := wgtypes.ParseKey(value)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("%s is not a WireGuard key", key)
	}
	return k, nil
}

func parseNumber(key, value string) (int, error) {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s %q is not a number", key, value)
	}
	return int(n), nil
}

func parsePrefixes(value string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for s := range strings.SplitSeq(value, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		if p.Bits() < minBits && (!mesh.IsDefaultRoute(p) || p != p.Masked()) {
			return nil, fmt.Errorf("%v is broader than a /%d; a client with --access internet has 0.0.0.0/0 and ::/0", p, minBits)
		}
		out = append(out, p)
	}
	return out, nil
}
