// SPDX-License-Identifier: Apache-2.0

// Package kilo reads how Kilo was set up, from Kubernetes' objects as kubectl prints them in
// JSON, and writes the same for meshd: a configuration for each node, and the commands that
// add Kilo's peers as clients. It reads and writes no files.
//
//	var s kilo.Setup
//	err := s.Add(data) // kubectl get nodes,peers.kilo.squat.ai -o json
//	result, err := s.Convert()
package kilo

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Annotations that a person or Kilo itself writes on a node.
const (
	prefix             = "kilo.squat.ai/"
	location           = prefix + "location"
	leader             = prefix + "leader"
	forceEndpoint      = prefix + "force-endpoint"
	foundEndpoint      = prefix + "endpoint"
	forceInternalIP    = prefix + "force-internal-ip"
	foundInternalIP    = prefix + "internal-ip"
	keepalive          = prefix + "persistent-keepalive"
	allowedLocationIPs = prefix + "allowed-location-ips"
	granularity        = prefix + "granularity"
)

// Setup is what was read so far. The zero value is empty.
type Setup struct {
	nodes []node
	peers []peer
	agent agent
}

// node is a node of Kubernetes.
type node struct {
	Metadata struct {
		Name                string
		Annotations, Labels map[string]string
	}
	Spec struct {
		PodCIDR  string
		PodCIDRs []string
	}
}

// peer is Kilo's resource for a machine outside of the cluster.
type peer struct {
	Metadata struct{ Name string }
	Spec     struct {
		AllowedIPs              []string
		Endpoint                *endpoint
		PublicKey, PresharedKey string
	}
}

// endpoint is where a peer waits for nodes.
type endpoint struct {
	DNSOrIP struct{ DNS, IP string }
	Port    uint16
}

// String returns host:port, "" for no endpoint.
func (e *endpoint) String() string {
	if e == nil {
		return ""
	}
	return net.JoinHostPort(cmp.Or(e.DNSOrIP.IP, e.DNSOrIP.DNS), strconv.Itoa(int(e.Port)))
}

// daemonSet has the flags of Kilo's agent, if it is the one that runs that.
type daemonSet struct {
	Spec struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Image         string
					Command, Args []string
				}
			}
		}
	}
}

// Add reads objects that kubectl get -o json has printed: nodes, peers, the DaemonSet of Kilo's
// agent, and lists of them. Other objects are passed over.
func (s *Setup) Add(data []byte) error {
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var object json.RawMessage
		if err := d.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("after %d bytes: %w; want what kubectl get -o json prints", d.InputOffset(), err)
		}
		if err := s.add(object); err != nil {
			return err
		}
	}
}

func (s *Setup) add(object json.RawMessage) error {
	var head struct {
		APIVersion, Kind string
		Metadata         struct{ Name string }
		Items            []json.RawMessage
	}
	if err := json.Unmarshal(object, &head); err != nil {
		return fmt.Errorf("not an object of Kubernetes: %w; want what kubectl get -o json prints", err)
	}
	var err error
	switch {
	case head.Kind == "Node":
		err = appendTo(&s.nodes, object)
	case head.Kind == "Peer" && strings.HasPrefix(head.APIVersion, prefix):
		err = appendTo(&s.peers, object)
	case head.Kind == "DaemonSet":
		var d daemonSet
		if err = json.Unmarshal(object, &d); err == nil {
			err = s.addAgent(d)
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", head.Kind, head.Metadata.Name, err)
	}
	for _, item := range head.Items {
		if err := s.add(item); err != nil {
			return err
		}
	}
	return nil
}

func appendTo[T any](all *[]T, object json.RawMessage) error {
	var one T
	err := json.Unmarshal(object, &one)
	*all = append(*all, one)
	return err
}

// addAgent reads the flags of the container that runs Kilo's agent, if there is one.
func (s *Setup) addAgent(d daemonSet) error {
	for _, c := range d.Spec.Template.Spec.Containers {
		args := slices.Concat(c.Command, c.Args)
		if i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") }); strings.Contains(c.Image, "kilo") && i >= 0 {
			var err error
			s.agent, err = readAgent(args[i:])
			return err
		}
	}
	return nil
}
