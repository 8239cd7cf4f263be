{{/* Parts of a pod that are the same in all roles. */}}

{{/* Takes (dict "root" $ "role" "coordinator" "config" .Values.coordinator). */}}
{{- define "annheal.podMetadata" -}}
labels:
  {{- include "annheal.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .role }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # A changed configuration rolls the pods.
  checksum/config: {{ include "annheal.toml" .root | sha256sum }}
  kubectl.kubernetes.io/default-container: {{ .role }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "annheal.podScheduling" -}}
serviceAccountName: {{ include "annheal.serviceAccountName" .root }}
# No role talks to the Kubernetes API.
automountServiceAccountToken: false
# Kubernetes would otherwise add a variable for every service of the namespace, and a service
# named annheal-* would look like a setting.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .config.terminationGracePeriodSeconds }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .config.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .config.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .config.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .config.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if .config.topologySpreadConstraints }}
  {{- toYaml .config.topologySpreadConstraints | nindent 2 }}
{{- else }}
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "annheal.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Nothing unless the pods are scraped. */}}
{{- define "annheal.metricsPort" -}}
{{- if .Values.metrics.enabled -}}
- name: metrics
  containerPort: {{ .Values.metrics.port }}
{{- end -}}
{{- end -}}

{{/* Takes (dict "root" $ "port" 7700). */}}
{{- define "annheal.probes" -}}
{{- $port := .port -}}
{{- range $kind := list "startup" "liveness" "readiness" }}
{{ $kind }}Probe:
  grpc:
    port: {{ $port }}
  {{- toYaml (get $.root.Values.probes $kind) | nindent 2 }}
{{- end }}
{{- end -}}
