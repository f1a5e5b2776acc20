// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const containerd = "unix:///run/containerd/containerd.sock"

// withRuntime connects to containerd and calls f.
func withRuntime(f func(cri.RuntimeServiceClient) error) error {
	conn, err := grpc.NewClient(containerd, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	return errors.Join(f(cri.NewRuntimeServiceClient(conn)), conn.Close())
}

// runPod makes a pod and prints its address and network namespace.
func runPod(ctx context.Context, name string, hostPort int32) error {
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Hostname:     name,
		LogDirectory: "/run/pod-logs",
		Linux:        &cri.LinuxPodSandboxConfig{},
	}
	if hostPort != 0 {
		config.PortMappings = []*cri.PortMapping{{Protocol: cri.Protocol_TCP, ContainerPort: servePort, HostPort: hostPort}}
	}
	return withRuntime(func(c cri.RuntimeServiceClient) error {
		made, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
		if err != nil {
			return fmt.Errorf("make pod: %w", err)
		}
		status, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: made.PodSandboxId, Verbose: true})
		if err != nil {
			return fmt.Errorf("look at pod: %w", err)
		}
		namespace, err := namespaceOf(status.Info["info"])
		if err != nil {
			return err
		}
		fmt.Println(status.Status.Network.Ip, namespace)
		return nil
	})
}

// namespaceOf returns the network namespace in containerd's description of a pod.
func namespaceOf(info string) (string, error) {
	var parsed struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(info), &parsed); err != nil {
		return "", fmt.Errorf("read pod's state: %w", err)
	}
	for _, n := range parsed.RuntimeSpec.Linux.Namespaces {
		if n.Type == "network" {
			return n.Path, nil
		}
	}
	return "", errors.New("read pod's state: no network namespace in it")
}

// removePod removes all pods of that name, including those that a reboot has ended.
func removePod(ctx context.Context, name string) error {
	return withRuntime(func(c cri.RuntimeServiceClient) error {
		list, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		for _, p := range list.Items {
			if p.Metadata.Name != name {
				continue
			}
			if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				return fmt.Errorf("stop pod: %w", err)
			}
			if _, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
				return fmt.Errorf("remove pod: %w", err)
			}
		}
		return nil
	})
}
