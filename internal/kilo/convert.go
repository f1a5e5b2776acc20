// SPDX-License-Identifier: Apache-2.0

package kilo

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
)

// Result is how meshd is to be set up.
type Result struct {
	Files   []File // sorted by node
	Clients string // a shell script that adds Kilo's peers, "" without peers
	Notes   []string
}

// File is /etc/meshd.yaml of a node.
type File struct {
	Node    string
	Content []byte
}

// file is the part of /etc/meshd.yaml that Kilo has something to say about.
type file struct {
	SecretFile string    `yaml:"secret-file"`
	Join       []string  `yaml:"join,flow,omitempty"`
	Node       nodePart  `yaml:"node"`
	Cluster    cluster   `yaml:"cluster"`
	WireGuard  wireGuard `yaml:"wireguard,omitempty"`
	CNI        cni       `yaml:"cni,omitempty"`
}

type nodePart struct {
	Name               string   `yaml:"name"`
	Location           string   `yaml:"location,omitempty"`
	Endpoint           string   `yaml:"endpoint,omitempty"`
	InternalIP         string   `yaml:"internal-ip,omitempty"`
	Gateway            string   `yaml:"gateway,omitempty"`
	Exit               bool     `yaml:"exit,omitempty"`
	Keepalive          string   `yaml:"keepalive,omitempty"`
	PodCIDR            []string `yaml:"pod-cidr,flow,omitempty"`
	AllowedLocationIPs []string `yaml:"allowed-location-ips,flow,omitempty"`
}

type cluster struct {
	Mode          string   `yaml:"mode"`
	Encapsulation string   `yaml:"encapsulation,omitempty"`
	Overlay       []string `yaml:"overlay,flow,omitempty"`
	Pods          []string `yaml:"pods,flow,omitempty"`
	Services      []string `yaml:"services,flow,omitempty"`
}

type wireGuard struct {
	ListenPort int `yaml:"listen-port,omitempty"`
	MTU        int `yaml:"mtu,omitempty"`
}

type cni struct {
	Enabled *bool `yaml:"enabled,omitempty"`
}

const (
	secretFile = "/etc/meshd/secret"
	// unlabelled is the location of nodes that have none in Kilo, where they are of one location.
	unlabelled = "default"
	joinNodes  = 3
)

// conversion is one conversion of a setup.
type conversion struct {
	Setup
	shared cluster
	hosts  []host // at which others are met, the best first
	notes  []string
}

// host is where a node is met.
type host struct {
	node, address string
	rank          int // the lowest is the best
}

// Convert works out how meshd is to be set up. Pods are the ranges of the pods of the whole
// cluster, which is k3s's cluster-cidr; none for meshd's default. The error names each node of
// which meshd would refuse the configuration, and why.
func (s *Setup) Convert(pods []string) (Result, error) {
	if len(s.nodes) == 0 {
		return Result{}, errors.New("no nodes: want what kubectl get nodes -o json prints")
	}
	slices.SortFunc(s.nodes, func(a, b node) int { return cmp.Compare(a.Metadata.Name, b.Metadata.Name) })
	c := conversion{Setup: *s}
	for _, f := range c.agent.unlike {
		c.note("the agent", "%s has no counterpart", f)
	}
	c.setShared(pods)
	c.findHosts()
	var result Result
	var networks []string
	var errs []error
	for i, n := range c.nodes {
		if i > 0 && c.nodes[i-1].Metadata.Name == n.Metadata.Name {
			errs = append(errs, fmt.Errorf("node %s is there twice: give each node once", n.Metadata.Name))
			continue
		}
		f := c.file(n)
		networks = append(networks, f.Node.AllowedLocationIPs...)
		if f.Node.Exit {
			networks = append(networks, string(mesh.AccessInternet))
		}
		content, err := f.write()
		if err == nil {
			_, err = config.Parse(n.Metadata.Name, content)
		}
		errs = append(errs, err)
		result.Files = append(result.Files, File{n.Metadata.Name, content})
	}
	if err := errors.Join(errs...); err != nil {
		return Result{}, err
	}
	result.Clients = c.clients(networks)
	result.Notes = c.notes
	return result, nil
}

// note keeps something that a person should know, about a node or a peer.
func (c *conversion) note(subject, format string, args ...any) {
	c.notes = append(c.notes, subject+": "+fmt.Sprintf(format, args...))
}

// write returns the text of a file.
func (f file) write() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# /etc/meshd.yaml of " + f.Node.Name + ", made from what Kilo was told.\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(f), e.Close()); err != nil {
		return nil, fmt.Errorf("write the configuration of %s: %w", f.Node.Name, err)
	}
	return b.Bytes(), nil
}

// setShared sets the settings that all nodes share.
func (c *conversion) setShared(pods []string) {
	c.shared = cluster{Mode: c.agent.granularity, Encapsulation: c.agent.encapsulate, Pods: pods, Services: c.agent.services}
	if c.agent.subnet != "" {
		c.shared.Overlay = []string{c.agent.subnet}
	}
	// Each agent writes what it was told on its node.
	for _, n := range c.nodes {
		said := n.Metadata.Annotations[granularity]
		if c.shared.Mode == "" {
			c.shared.Mode = said
		}
		if said != "" && said != c.shared.Mode {
			c.note(n.Metadata.Name, "its agent runs in mode %s, not %s: the mode of a mesh is one for all nodes", said, c.shared.Mode)
		}
	}
	c.shared.Mode = cmp.Or(c.shared.Mode, defaultGranularity)
}

// file returns the settings of one node.
func (c *conversion) file(n node) file {
	name, said := n.Metadata.Name, n.Metadata.Annotations
	f := file{SecretFile: secretFile, Join: c.join(name), Node: nodePart{Name: name}, Cluster: c.shared}
	f.WireGuard.MTU = c.agent.mtu
	if c.agent.noCNI {
		f.CNI.Enabled = new(bool)
	}
	c.setLocation(&f.Node, n)
	if _, ok := said[leader]; ok {
		f.Node.Gateway = "prefer"
	}

	port := cmp.Or(c.agent.port, defaultPort)
	if endpoint := said[forceEndpoint]; endpoint != "" {
		if _, p, err := net.SplitHostPort(endpoint); err != nil {
			c.note(name, "%s is %q, which Kilo ignores, and so does its file: %v", forceEndpoint, endpoint, err)
		} else {
			f.Node.Endpoint = endpoint
			if number, err := strconv.Atoi(p); err == nil {
				port = number // Kilo listens there, too
			}
		}
	}
	if port != defaultPort {
		f.WireGuard.ListenPort = port
	}
	if period := said[keepalive]; period != "" {
		if seconds, err := strconv.ParseUint(period, 10, 16); err != nil {
			c.note(name, "%s is %q, which Kilo ignores, and so does its file", keepalive, period)
		} else {
			f.Node.Keepalive = fmt.Sprintf("%ds", seconds)
		}
	}

	f.Node.PodCIDR = podCIDRs(n)
	c.setNetworks(&f.Node, n)
	return f
}

// setLocation sets the location and the internal IP. In Kilo, a node without an internal IP is
// alone, and all others without a location are of one.
func (c *conversion) setLocation(f *nodePart, n node) {
	name, said := n.Metadata.Name, n.Metadata.Annotations
	internalIP, forced := said[forceInternalIP]
	if forced && (internalIP == "" || internalIP == "-") {
		f.InternalIP = "none"
		return
	}
	switch p, err := netip.ParsePrefix(internalIP); {
	case !forced:
	case err != nil:
		c.note(name, "%s is %q, which Kilo ignores for want of a length, and so does its file", forceInternalIP, internalIP)
	case p.IsSingleIP():
		c.note(name, "%s is %s: write it as node.internal-ip with the length of its network, as ip address shows it, unless meshd finds it by itself", forceInternalIP, internalIP)
	default:
		f.InternalIP = internalIP
	}
	place, ok := said[location]
	if !ok {
		place = n.Metadata.Labels[cmp.Or(c.agent.topologyLabel, defaultTopologyLabel)]
	}
	if place == "" && c.shared.Mode != "full" && (forced || said[foundInternalIP] != "") {
		place = unlabelled
		c.note(name, "has no location, and Kilo takes all such nodes for neighbours: its file says location %s; remove that where it is not true", unlabelled)
	}
	f.Location = strings.ToLower(place)
}

// podCIDRs returns a node's ranges of pods, of IPv4: Kilo gives pods no other addresses.
func podCIDRs(n node) []string {
	all := n.Spec.PodCIDRs
	if len(all) == 0 && n.Spec.PodCIDR != "" {
		all = []string{n.Spec.PodCIDR}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p string) bool { return strings.Contains(p, ":") })
}

// setNetworks sets the networks behind a node. All addresses of a family are the internet.
func (c *conversion) setNetworks(f *nodePart, n node) {
	for _, text := range strings.Split(n.Metadata.Annotations[allowedLocationIPs], ",") {
		if text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			c.note(n.Metadata.Name, "%s has %q, which Kilo ignores, and so does its file: %v", allowedLocationIPs, text, err)
			continue
		}
		if mesh.IsDefaultRoute(p) {
			f.Exit = true
			c.note(n.Metadata.Name, "%s has %s: clients reach the internet through it, but nodes and pods keep their own way", allowedLocationIPs, text)
			continue
		}
		f.AllowedLocationIPs = append(f.AllowedLocationIPs, p.Masked().String())
	}
}

// findHosts finds out where nodes are met: first those that a person has named, then the public ones.
func (c *conversion) findHosts() {
	for _, n := range c.nodes {
		said := n.Metadata.Annotations
		for rank, endpoint := range []string{said[forceEndpoint], said[foundEndpoint]} {
			address, _, err := net.SplitHostPort(endpoint)
			if err != nil {
				continue
			}
			if a, err := netip.ParseAddr(address); err == nil && a.IsPrivate() {
				rank = 2
			}
			c.hosts = append(c.hosts, host{n.Metadata.Name, address, rank})
			break
		}
	}
	slices.SortStableFunc(c.hosts, func(a, b host) int { return cmp.Compare(a.rank, b.rank) })
}

// join returns addresses of some other nodes.
func (c *conversion) join(name string) []string {
	var addresses []string
	for _, h := range c.hosts {
		if h.node != name && len(addresses) < joinNodes {
			addresses = append(addresses, h.address)
		}
	}
	return addresses
}
